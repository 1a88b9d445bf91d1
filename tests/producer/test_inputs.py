"""The input files: found by name or pattern, decompressed, and read line by line."""

import gzip
import hashlib
import os
import tempfile
from pathlib import Path

import pytest
import zstandard

from producer.errors import UsageError
from producer.inputs import default_prefix, expand_inputs, iter_lines, read_rows


def _write(path: Path, *lines: str | bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


class TestInputs:
    def test_globs_give_their_files_in_name_order(self, tmp_path: Path) -> None:
        for name in ("b.jsonl", "a.jsonl", "c.txt"):
            _write(tmp_path / name, "{}")
        (tmp_path / "d.jsonl").mkdir()
        assert expand_inputs([str(tmp_path / "*.jsonl")]) == [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]

    def test_a_file_whose_name_looks_like_a_glob_is_itself(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "a[1].jsonl", "{}")
        assert expand_inputs([str(path)]) == [path]

    def test_a_file_named_twice_is_refused(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "a.jsonl", "{}")
        (tmp_path / "link.jsonl").symlink_to(path)
        for again in (path, tmp_path / "*.jsonl", tmp_path / "link.jsonl"):
            with pytest.raises(UsageError, match="named twice"):
                expand_inputs([str(path), str(again)])

    @pytest.mark.parametrize(
        ("name", "message"),
        [
            ("absent.jsonl", "no such file"),
            ("absent*.jsonl", "no file matches"),
            (".", "name the files"),
            ("talk.WAV", r'\{"audio": "/.*talk\.WAV"\}'),
            ("data.jsonl.xz", "unpack it first"),
            ("rows.parquet", r"rows\.parquet: only JSON Lines are read here: .* or use producer\.dataflow"),
            ("rows.CSV", "only JSON Lines"),
            ("pipe", "read more than once"),
            ("x" * 300 + ".jsonl", r"x\.jsonl: cannot be read \(File name too long\)"),
        ],
    )
    def test_what_is_no_jsonl_file_is_refused(self, tmp_path: Path, name: str, message: str) -> None:
        _write(tmp_path / "talk.WAV", "RIFF")
        _write(tmp_path / "data.jsonl.xz", "")
        _write(tmp_path / "rows.parquet", b"PAR1")
        _write(tmp_path / "rows.CSV", "audio")
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(UsageError, match=message):
            expand_inputs([str(tmp_path / name)])

    @pytest.mark.parametrize("name", ["locked/data.jsonl", "locked/*.jsonl", "*/*.jsonl"])
    def test_a_folder_that_may_not_be_entered(self, name: str) -> None:
        user = os.geteuid()
        with tempfile.TemporaryDirectory() as folder:  # pytest's are this user's alone
            Path(folder).chmod(0o755)
            locked = _write(Path(folder, "locked", "data.jsonl"), "{}").parent
            locked.chmod(0o444)
            if user == 0:  # who may enter any folder
                os.seteuid(65534)
            try:
                with pytest.raises(UsageError, match=r"/.*\.jsonl: cannot be read \(Permission denied\)$"):
                    expand_inputs([str(Path(folder, name))])
            finally:
                os.seteuid(user)
                locked.chmod(0o700)

    def test_no_input_at_all(self) -> None:
        with pytest.raises(UsageError, match="no input"):
            expand_inputs([])

    @pytest.mark.parametrize("name", ["data.v2.jsonl", "data.v2.json.gz", "data.v2.jsonl.zst", "data.v2.JSONL"])
    def test_the_prefix_is_the_name_without_its_suffixes(self, name: str) -> None:
        assert default_prefix([Path("folder") / name]) == "data.v2"

    def test_several_inputs_have_no_default_prefix(self) -> None:
        with pytest.raises(UsageError, match="--prefix"):
            default_prefix([Path("a.jsonl"), Path("b.jsonl")])


class TestLines:
    def test_blank_lines_marks_and_line_ends(self, tmp_path: Path) -> None:
        one, two = tmp_path / "1.jsonl", tmp_path / "2.jsonl"
        one.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n \t\r\n{"a": 2}')
        two.write_bytes(b'\xef\xbb\xbf\n  {"a": "\xe2\x80\xa8"}\n')
        assert list(iter_lines([one, two])) == [
            (one, 1, b'{"a": 1}'),
            (one, 4, b'{"a": 2}'),
            (two, 2, b'{"a": "\xe2\x80\xa8"}'),
        ]

    @pytest.mark.parametrize("suffix", [".gz", ".zst"])
    def test_compressed_files_with_several_parts(self, tmp_path: Path, suffix: str) -> None:
        lines = [f'{{"audio": "{number}.wav"}}'.encode() for number in range(20_000)]
        halves = [b"\n".join(lines[:9999]) + b"\n", b"\n".join(lines[9999:])]
        pack = gzip.compress if suffix == ".gz" else zstandard.ZstdCompressor().compress
        path = tmp_path / f"data.jsonl{suffix}"
        path.write_bytes(b"".join(map(pack, halves)))
        assert list(read_rows([path])) == lines
        assert list(read_rows([path], limit=2)) == lines[:2]

    @pytest.mark.parametrize("suffix", [".gz", ".zst"])
    def test_cut_and_damaged_files_are_named(self, tmp_path: Path, suffix: str) -> None:
        rows = b"".join(f'{{"audio": "{hashlib.md5(bytes([n])).hexdigest()}"}}\n'.encode() for n in range(200))
        packed = (
            gzip.compress(rows) if suffix == ".gz" else zstandard.ZstdCompressor(write_checksum=True).compress(rows)
        )
        damaged = bytearray(packed)
        damaged[len(packed) // 2] ^= 0xFF
        path = tmp_path / f"data.jsonl{suffix}"
        for data in (*(packed[:size] for size in range(1, len(packed), 97)), bytes(damaged), b"no archive"):
            path.write_bytes(data)
            with pytest.raises(UsageError, match=rf"data\.jsonl\{suffix}: damaged or cut"):
                list(iter_lines([path]))

    def test_a_file_that_went_away(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match=r"gone\.jsonl: cannot be read \(No such file"):
            list(iter_lines([tmp_path / "gone.jsonl"]))


@pytest.mark.parametrize("name", ["/dev/stdin", "/dev/fd/0", "/proc/self/fd/0"])
def test_a_redirected_file_is_no_input_for_later_commands(tmp_path: Path, name: str) -> None:
    (tmp_path / "data.jsonl").write_text("{}\n")
    before = os.dup(0)
    try:
        with (tmp_path / "data.jsonl").open() as source:
            os.dup2(source.fileno(), 0)
        with pytest.raises(UsageError, match="not a regular file"):
            expand_inputs([name])
    finally:
        os.dup2(before, 0)
        os.close(before)
