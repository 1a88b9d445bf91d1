"""The rows: checked with file and line, turned into records, and extended without touching what they hold."""

import gzip
import hashlib
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from producer.errors import UsageError
from producer.rows import ScanRules, record_of, recording_count, scan, timed_record_of, with_columns
from workers.messages import Failure, Record

AUDIO = ScanRules("audio")

# JSON text rather than values: what json.dumps never writes must survive as well.
_numbers = st.one_of(
    st.integers().map(str),
    st.integers(0, 99).map(lambda digits: "9" * (digits + 20)),
    st.sampled_from(["1e400", "-1E+400", "1.10", "0.30000000000000004", "-0", "-0.0", "1E5", "5e-324"]),
)
_strings = st.one_of(
    st.text().map(json.dumps),
    st.text(st.characters(exclude_categories=("Cs",))).map(lambda text: json.dumps(text, ensure_ascii=False)),
    st.sampled_from(['"\\ud800"', '"\\u0041\\/"', '"a\\"}{,["', '"\\ud83d\\ude00"', '"\u2028"']),
)
_scalars = st.one_of(_numbers, _strings, st.sampled_from(["null", "true", "false"]))
_space = st.sampled_from(["", " ", "  ", "\t"])


def _object_text(members: list[tuple[str, str]], space: str) -> str:
    inside = f",{space}".join(f"{key}{space}:{space}{value}" for key, value in members)
    return f"{{{space}{inside}{space}}}"


_values = st.recursive(
    _scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.builds(_object_text, st.lists(st.tuples(_strings, inner), max_size=3), _space),
    ),
    max_leaves=8,
)
_lines = st.builds(_object_text, st.lists(st.tuples(_strings, _values), max_size=5), _space)
_added = st.dictionaries(
    st.sampled_from(["new", "new_error", "né\u4e2d"]),
    st.one_of(st.none(), st.text(st.characters()), st.floats(allow_nan=False, allow_infinity=False), st.just("\ud800")),
    max_size=3,
)


def _write(path: Path, *lines: str | bytes) -> Path:
    path.write_bytes(b"\n".join(line if isinstance(line, bytes) else line.encode() for line in lines) + b"\n")
    return path


def _raw_members(text: str) -> list[tuple[str, str]]:
    """Key and raw text of the value of each member, by a reader that shares nothing with the tested one."""
    members, depth, in_string, escaped, start = [], 0, False, False, 1
    for at, character in enumerate(text):
        if in_string:
            in_string = escaped or character != '"'
            escaped = not escaped and character == "\\"
        elif character == '"':
            in_string = True
        elif character in "[{":
            depth += 1
        elif character in "]}":
            depth -= 1
        if not in_string and (depth == 0 or (depth == 1 and character == ",")):
            if text[start:at].strip():
                members.append(text[start:at].strip())
            start = at + 1
    pairs = []
    for member in members:
        key, end = json.JSONDecoder().raw_decode(member)
        pairs.append((key, member[end:].strip()[1:].strip()))
    return pairs


class TestWithColumns:
    @given(_lines, _added)
    def test_the_row_keeps_its_bytes_and_gains_the_columns(self, text: str, added: dict[str, object]) -> None:
        line = text.encode()
        out = with_columns(line, added)
        assert json.loads(out) == json.loads(line) | added
        assert out.startswith(line[:-1].rstrip())
        assert b"\n" not in out

    @given(_lines, _added, st.data())
    def test_dropped_columns_go_and_all_others_keep_their_text(
        self, text: str, added: dict[str, object], data: st.DataObject
    ) -> None:
        members = _raw_members(text)
        names = sorted({key for key, _ in members} | {"absent"})
        drop = data.draw(st.sets(st.sampled_from(names)))
        out = with_columns(text.encode(), added, drop)
        kept = [member for member in members if member[0] not in drop]
        assert _raw_members(out.decode())[: len(kept)] == kept
        left = {key: value for key, value in json.loads(text).items() if key not in drop}
        assert json.loads(out) == left | added

    def test_a_repeated_column_is_dropped_each_time_it_stands_there(self) -> None:
        assert with_columns(b'{"t": 1,"a":2, "\\u0074": 3}', {"t": 4}, {"t"}) == b'{"a":2, "t": 4}'

    def test_an_integer_longer_than_python_converts_passes(self) -> None:
        line = b'{"n": ' + b"7" * 5000 + b', "old": 1}'
        assert with_columns(line, {"t": "x"}, {"old"}) == b'{"n": ' + b"7" * 5000 + b', "t": "x"}'

    def test_an_empty_row(self) -> None:
        assert with_columns(b"{ }", {"t": None}) == b'{"t": null}'
        assert with_columns(b"{}", {}) == b"{}"

    def test_other_writing_systems_stay_readable(self) -> None:
        assert with_columns(b"{}", {"t": "中文"}).decode() == '{"t": "中文"}'

    def test_nan_is_no_json(self) -> None:
        with pytest.raises(ValueError, match="not JSON compliant"):
            with_columns(b"{}", {"t": float("nan")})


class TestScan:
    def test_size_and_hash_are_those_of_the_row_lines(self, tmp_path: Path) -> None:
        plain = _write(tmp_path / "a.jsonl", '{"audio": "a"}', "", ' {"audio": ["b", null]}', '{"audio": null}')
        packed = tmp_path / "b.jsonl.gz"
        packed.write_bytes(gzip.compress(plain.read_bytes()))
        rows = b'{"audio": "a"}\n{"audio": ["b", null]}\n{"audio": null}\n'
        found = scan([plain], AUDIO)
        assert (found.rows, found.bytes, found.sha256) == (3, len(rows), hashlib.sha256(rows).hexdigest())
        assert scan([packed], AUDIO) == found

    def test_nothing_is_zero_rows(self, tmp_path: Path) -> None:
        (tmp_path / "a.jsonl").touch()
        assert scan([tmp_path / "a.jsonl"], AUDIO).rows == 0

    def test_rows_past_the_limit_are_not_looked_at(self, tmp_path: Path) -> None:
        path = _write(tmp_path / "a.jsonl", '{"audio": "a"}', "broken")
        assert scan([path], ScanRules("audio", limit=1)).rows == 1

    def test_what_other_writers_write_passes(self, tmp_path: Path) -> None:
        deep = "[" * 400 + "]" * 400
        flat = json.dumps([{"[": "]"}] * 2000)
        rest = f'"n": {"9" * 5000}, "x": NaN, "audio": "last", "d": {deep}, "f": {flat}, "s": "{"[" * 900}"'
        path = _write(tmp_path / "a.jsonl", f'{{"audio": 1, {rest}}}')
        assert scan([path], AUDIO).rows == 1

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"audio": "a" "b"}', r"not valid JSON \(Expecting ',' delimiter at column 15\): fix or remove the line"),
            ('{"audio": "a"} {}', r"not valid JSON \(Extra data at column 16\)"),
            ('{"audio": "a\tb"}', r"not valid JSON \(Invalid control character at column 13\)"),
            ("[", r"not valid JSON \(.*\): write one object per line"),
            (b'{"audio": "\xff"}', r"not valid UTF-8 \(byte 0xff at position 12\)"),
            (b'{"audio": "\xed\xa0\x80"}', "not valid UTF-8"),
            ('["a.wav"]', "a list, not an object"),
            ("17", "a number, not an object"),
            ('{"path": "a", "id": 1}', r"no column 'audio' \(there is: path, id\): .*--media-key"),
            ("{}", "there is: nothing"),
            ('{"audio": 17}', "column 'audio' holds a number: it must hold a path, a URL or a list"),
            ('{"audio": {"uri": "a"}}', "holds an object: it must hold a path, a URL or a list"),
            ('{"audio": {"path": "a"}}', "holds an object: a Hugging Face audio column: give a column with its `path`"),
            ('{"audio": [{"bytes": null}]}', "holds a list with an object: a Hugging Face audio column"),
            ('{"audio": true}', "holds a boolean"),
            ('{"audio": ["a", ["b"]]}', "holds a list with a list"),
            ('{"audio": "a", "transcri\\u0070tion": 1}', "'transcription' is already there: .*--overwrite-column"),
            ('{"audio": "a", "d": ' + "[" * 501 + "]" * 501 + "}", "nested more than 500 levels"),
            ('{"audio": "a", "d": ' + "[" * 100_000, "nested more than 500 levels"),
        ],
    )
    def test_the_first_wrong_line_is_named(self, tmp_path: Path, line: str | bytes, message: str) -> None:
        path = _write(tmp_path / "a.jsonl", '{"audio": "good"}', "", line, "worse")
        with pytest.raises(UsageError, match=rf"a\.jsonl:3: .*{message}") as caught:
            scan([path], ScanRules("audio", frozenset({"transcription"})))
        assert "\n" not in str(caught.value)
        assert caught.value.exit_code == 2


def _record(line: dict[str, object], media_key: str = "audio", root: str = "/data") -> Record | Failure:
    return record_of(7, json.dumps(line).encode(), media_key, root)


class TestRecords:
    @pytest.mark.parametrize(
        ("audio", "expected"),
        [
            ("a.wav", "/data/a.wav"),
            (".//x/./a b.wav", "/data/x/a b.wav"),
            ("..a/b..wav", "/data/..a/b..wav"),
            ("/abs/../a.wav", "/abs/../a.wav"),
            ("~/a.wav", "/data/~/a.wav"),
            ("https://host/a.wav?x=//y", "https://host/a.wav?x=//y"),
            ("s3://bucket/a.wav", "s3://bucket/a.wav"),
            (["a.wav"], "/data/a.wav"),
            (["a.wav", None, "", "/b"], ["/data/a.wav", "", "", "/b"]),
        ],
    )
    def test_sources(self, audio: object, expected: object) -> None:
        assert _record({"audio": audio}) == Record(audio=expected, row=7)  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("root", "audio", "expected"),
        [
            # Folders that are there are left again here: a worker need not have them.
            ("data/lists", "../talk.wav", "data/talk.wav"),
            ("data/lists/../", "x/./../lists//talk.wav", "data/x/../lists/talk.wav"),
            ("data/lists/..", "lists/./..//talk.wav", "data/talk.wav"),
            # Behind a link, `..` is not one name back.
            ("data", "en/../talk.wav", "data/en/../talk.wav"),
            ("data", "lists/../en/deep/../../talk.wav", "data/en/../talk.wav"),
            ("data/en/..", "talk.wav", "data/en/../talk.wav"),
            # What cannot be seen here is the worker's to find.
            ("gone", "./lists/../talk.wav", "gone/lists/../talk.wav"),
            ("data", "talk.wav/../talk.wav", "data/talk.wav/../talk.wav"),
        ],
    )
    def test_two_dots_lead_where_the_system_says(self, tmp_path: Path, root: str, audio: str, expected: str) -> None:
        for folder in ("data/lists", "store/en/deep"):
            (tmp_path / folder).mkdir(parents=True)
        for folder in ("data", "store"):
            (tmp_path / folder / "talk.wav").touch()
        (tmp_path / "data" / "en").symlink_to("../store/en")
        record = _record({"audio": audio}, root=f"{tmp_path}/{root}")
        assert record == Record(audio=f"{tmp_path}/{expected}", row=7)
        assert os.path.realpath(f"{tmp_path}/{expected}") == os.path.realpath(f"{tmp_path}/{root}/{audio}")

    def test_two_dots_lead_no_higher_than_the_top(self) -> None:
        assert _record({"audio": "../../../a.wav"}, root="/") == Record(audio="/a.wav", row=7)

    def test_a_root_may_be_a_url(self) -> None:
        assert _record({"audio": "x/a.wav"}, root="s3://bucket/") == Record(audio="s3://bucket/x/a.wav", row=7)

    @pytest.mark.parametrize("audio", [None, [], "", [None], ["", None]])
    def test_no_audio(self, audio: object) -> None:
        failure = _record({"audio": audio})
        assert isinstance(failure, Failure)
        assert failure.type == "no_audio"

    def test_the_row_s_own_options(self) -> None:
        row = {"audio": "a", "language": "German", "prompt": "Namen: Ğ", "start_s": 1, "end_s": 2.5}
        assert _record(row) == Record(audio="/data/a", row=7, language="de", prompt="Namen: Ğ", start_s=1.0, end_s=2.5)

    def test_absent_options_and_detection(self) -> None:
        assert _record({"audio": "a", "language": "", "prompt": None}) == Record(audio="/data/a", row=7)
        missing = dict.fromkeys(("language", "prompt", "start_s", "end_s"), math.nan)
        assert _record({"audio": "a", **missing}) == Record(audio="/data/a", row=7)
        assert _record({"audio": "a", "language": "Auto"}) == Record(audio="/data/a", row=7, language="auto")

    @pytest.mark.parametrize(
        ("options", "type_", "message"),
        [
            ({"language": "klingon"}, "unknown_language", "klingon"),
            ({"language": "\ud800"}, "bad_argument", "language: "),
            ({"language": ["en"]}, "bad_argument", "language: must be a string, not a list"),
            ({"prompt": 5}, "bad_argument", "prompt: must be a string, not a number"),
            ({"prompt": "\ud800"}, "bad_argument", "prompt: "),
            ({"start_s": "5"}, "bad_argument", "start_s: must be a number of seconds, not a string"),
            ({"start_s": True}, "bad_argument", "start_s: must be a number of seconds, not a boolean"),
            ({"start_s": -math.inf}, "bad_argument", "start_s: must be a finite number of seconds"),
            ({"end_s": 10**400}, "bad_argument", "end_s: must be a finite number of seconds"),
            ({"start_s": -1}, "bad_argument", "start_s: "),
            ({"start_s": 3, "end_s": 2}, "bad_argument", "end_s must be greater than start_s"),
        ],
    )
    def test_a_bad_option_fails_its_row_by_name(self, options: dict[str, object], type_: str, message: str) -> None:
        failure = _record({"audio": "a", **options})
        assert isinstance(failure, Failure)
        assert failure.type == type_
        assert message in failure.message

    @pytest.mark.parametrize("audio", ["a\0b", "\ud800", ["a", "\udcff.wav"]])
    def test_what_cannot_be_a_path(self, audio: object) -> None:
        failure = _record({"audio": audio})
        assert isinstance(failure, Failure)
        assert failure.type == "bad_argument"
        failure.model_dump_json()

    def test_a_media_key_named_like_an_option_is_the_audio(self) -> None:
        assert _record({"prompt": "a.wav", "language": "en"}, "prompt") == Record(
            audio="/data/a.wav", row=7, language="en"
        )

    @pytest.mark.parametrize(
        ("line", "count"),
        [
            ('{"audio": "a"}', 1),
            ('{"audio": "a", "b": [1, 2]}', 1),
            ('{"audio": null, "b": []}', 1),
            ('{"audio": []}', 1),
            ('{"audio": ["a"]}', 1),
            ('{"audio": ["a", null, ""]}', 3),
        ],
    )
    def test_the_number_of_recordings(self, line: str, count: int) -> None:
        assert recording_count(line.encode(), "audio") == count


@pytest.mark.parametrize(
    ("row", "seconds"),
    [
        ({}, None),
        ({"duration": 4}, 4),
        ({"duration": 4.5, "end_s": None}, 4.5),
        ({"duration": 100, "start_s": 90}, 10),
        ({"duration": 100, "start_s": 5, "end_s": 8.5}, 3.5),
        ({"duration": 4, "start_s": math.nan, "end_s": math.nan}, 4),
        ({"end_s": 3}, 3),
        ({"start_s": 3}, None),
        ({"start_s": 3, "end_s": 2}, None),
        ({"duration": "4"}, None),
        ({"duration": True}, None),
        ({"duration": [1, 2]}, None),
        ({"duration": math.nan}, None),
        ({"duration": math.inf}, None),
        ({"duration": -1}, None),
    ],
)
def test_a_row_may_say_how_long_its_audio_is(row: dict[str, object], seconds: float | None) -> None:
    line = json.dumps({"audio": "a.wav", **row}).encode()
    record, known = timed_record_of(7, line, "audio", "/r")
    assert known == seconds
    assert record == record_of(7, line, "audio", "/r"), "the record is the same either way"


@pytest.mark.parametrize("text", ["xx", '\\"', "\\\\"], ids=["plain", "quotation marks", "backslashes"])
def test_how_deep_a_row_is_takes_no_memory(text: str) -> None:
    """A string of 16 MB among many lists: `re` may remember every character of it, where tracemalloc does not look."""
    code = f"""if True:
        import resource
        from producer.rows import _depth
        line = b'{{"a": "' + {text.encode()!r} * 2**23 + b'", "b": [' + b"[]," * 600 + b"[[]]]}}"
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(_depth(line), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    """
    done = subprocess.run([sys.executable, "-c", code], text=True, capture_output=True, check=True, timeout=120)
    depth, kilobytes = map(int, done.stdout.split())
    assert depth == 4
    assert kilobytes < 50_000
