"""What travels: the records and options of a task, and the results that come back. All of it JSON.

The models refuse unknown fields by name, and values of another JSON type. They are the one place where the message
format is written down: `workers.contract` makes its JSON Schema of them, and contract.md explains it to people.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_serializer,
    model_validator,
)

from workers.errors import TranscriptionError, TransientError

#: Version of the message format; a change that an older worker would misread raises it.
VERSION = 1
#: That of messages which name none.
FIRST_VERSION = 1

#: The queues, one per task type.
Task = Literal["transcribe", "translate"]
TASKS: tuple[Task, ...] = ("transcribe", "translate")
TASK_NAMES: dict[Task, str] = {"transcribe": "whisper.transcribe", "translate": "whisper.translate"}


def task_id(job: str, first_row: int, part: str) -> str:
    """The id of a job's message: says whose it is, and to people which rows."""
    return f"{job}.{first_row}.{part}"


#: What becomes of a recording's channels: their mean is transcribed, or each on its own.
ChannelMode = Literal["mix", "split"]

#: Longest path or URL: the longest path of Linux is 4096 bytes, and signed URLs are longer than that at times.
MAX_SOURCE_CHARACTERS = 8192
#: Most recordings of a record, and most characters of all their paths and URLs.
MAX_SOURCES = 4096
MAX_SOURCES_CHARACTERS = 2**19
#: The model takes 223 tokens of a prompt; no text of so many characters has as few.
MAX_PROMPT_CHARACTERS = 10_000
MAX_NAME_CHARACTERS = 1000
#: Most records of a task that returns its transcripts, and most characters of what they name. (The rows of a job are
#: answered one by one, so that a chunk of them has no limit of its own.)
MAX_RECORDS = 1000
MAX_RECORDS_CHARACTERS = 2**22
#: Largest body of a message, whatever it holds: enough for any record, however its characters are escaped.
MAX_MESSAGE_BYTES = 2**24


def _whole(value: Any) -> Any:
    """JSON knows one kind of number: 1.0 is the integer 1."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


#: Integers from 0 and from 1. (The limit first: behind the validator, pydantic's schema would not know it.)
Number = Annotated[int, Field(ge=0), BeforeValidator(_whole)]
Count = Annotated[int, Field(ge=1), BeforeValidator(_whole)]
_SOURCE_SCHEMA = {"type": "string", "maxLength": MAX_SOURCE_CHARACTERS}
Audio = Annotated[
    str | list[str],
    Field(min_length=1),
    WithJsonSchema(
        {
            "anyOf": [
                {**_SOURCE_SCHEMA, "minLength": 1},
                {"type": "array", "items": _SOURCE_SCHEMA, "minItems": 1, "maxItems": MAX_SOURCES},
            ],
            "description": "A path or URL, or a list of them.",
        }
    ),
]
Prompt = Annotated[str, Field(max_length=MAX_PROMPT_CHARACTERS)]
#: Of a language or a model.
Name = Annotated[str, Field(max_length=MAX_NAME_CHARACTERS)]


class Message(BaseModel):
    """Base of everything that travels: frozen, of JSON's types, and unknown fields are refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, json_schema_serialization_defaults_required=True
    )


class Record(Message):
    """One row's audio and its own options; row and attempt are for jobs."""

    audio: Audio
    row: Number | None = None
    language: Name | None = None
    prompt: Prompt | None = None
    start_s: float | None = Field(None, ge=0, allow_inf_nan=False)
    end_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    attempt: Count = 1
    #: Set by workers only: this is a span of the row's recording of this number, from ``start_s`` to ``end_s``.
    span_of: Number | None = None

    @field_validator("audio")
    @classmethod
    def _audio_has_limits(cls, value: str | list[str]) -> str | list[str]:
        sources = [value] if isinstance(value, str) else value
        for number, source in enumerate(sources):
            _check_limit(len(source), MAX_SOURCE_CHARACTERS, f"characters in path or URL {number + 1}")
        _check_limit(len(sources), MAX_SOURCES, "recordings")
        _check_limit(sum(map(len, sources)), MAX_SOURCES_CHARACTERS, "characters in all paths and URLs")
        return value

    @model_validator(mode="after")
    def _span_has_length(self) -> Record:
        if self.end_s is not None and self.end_s <= (self.start_s or 0.0):
            raise ValueError("end_s must be greater than start_s")
        return self

    @property
    def sources(self) -> list[str]:
        """The record's audio as a list."""
        return [self.audio] if isinstance(self.audio, str) else self.audio


class Options(Message):
    """How a whole task is to be done; a record's own language and prompt are used instead."""

    language: Name = "auto"
    prompt: Prompt | None = None
    timestamps: bool = False
    channels: ChannelMode = "mix"
    model: Name | None = None
    version: Count = VERSION

    @model_serializer(mode="wrap")
    def _keep_version(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """What leaves out defaults still says its version, unless that is what a message without one has."""
        fields: dict[str, Any] = handler(self)
        return fields if self.version == FIRST_VERSION else {**fields, "version": self.version}


class Segment(Message):
    """A stretch of text with its times in seconds from the start of the recording."""

    start: float
    end: float
    text: str


class Transcript(Message):
    """The text of one recording and the figures that tell how far to trust it (names as in faster-whisper)."""

    text: str
    segments: list[Segment] | None = None
    language: str | None = None
    language_probability: float | None = None
    duration: float = 0.0
    speech_seconds: float = 0.0
    model: str = ""
    avg_logprob: float | None = None
    compression_ratio: float | None = None
    no_speech_prob: float | None = None
    temperature: float | None = None
    flags: list[str] = Field(default_factory=list)
    attempts: int = 1


class Failure(Message):
    """Why one recording has no transcript."""

    type: str
    message: str
    #: Whether another try may help; not part of what travels.
    transient: bool = Field(default=False, exclude=True, repr=False)

    @classmethod
    def of(cls, error: TranscriptionError) -> Failure:
        """The failure that ``error`` describes."""
        return cls(type=error.type, message=error.message, transient=isinstance(error, TransientError))


class ChannelTranscripts(Message):
    """A recording of several channels, each transcribed on its own (option channels): one entry a channel."""

    channels: list[Transcript | Failure] = Field(min_length=2)


#: What becomes of one recording.
Item = Transcript | Failure | ChannelTranscripts


class RowResult(Message):
    """A row's answer on its way to the collector: one item per recording of the row, in order."""

    row: int = Field(ge=0)
    items: list[Item]
    version: int = VERSION


class Span(Message):
    """A stretch of a row's recording that a worker does on its own, in seconds; without ``end_s`` to the end."""

    recording: int = Field(ge=0)
    start_s: float
    end_s: float | None = None


class Part(Message):
    """What of a row's answer this is: that of a ``span``, or the first, which names the spans that the row awaits."""

    span: Span | None = None
    awaits: tuple[Span, ...] = ()


class PartResult(Message):
    """A part of a row's answer on its way to the collector, which joins them (`workers.spans`)."""

    row: int = Field(ge=0)
    items: list[Item]
    part: Part
    version: int = VERSION


def failures_of(item: Item) -> list[Failure]:
    """What failed of a recording: itself, or channels of it."""
    parts = item.channels if isinstance(item, ChannelTranscripts) else [item]
    return [part for part in parts if isinstance(part, Failure)]


M = TypeVar("M", bound=Message)


def parse_records(records: Any) -> list[Record]:
    """The records of a task. Raises TranscriptionError ``bad_argument`` that names the record and the field."""
    if not isinstance(records, list) or not records:
        raise TranscriptionError("bad_argument", "records must be a list of at least one record")
    if len(records) > MAX_RECORDS:
        message = f"{len(records)} records in one task, the limit is {MAX_RECORDS}: send several tasks"
        raise TranscriptionError("bad_argument", message)
    parsed = [parse_record(record, number) for number, record in enumerate(records)]
    size = sum(len(text) for record in parsed for text in (*record.sources, record.prompt or ""))
    if size > MAX_RECORDS_CHARACTERS:
        message = f"records with {size} characters in one task, the limit is {MAX_RECORDS_CHARACTERS}"
        raise TranscriptionError("bad_argument", f"{message}: send several tasks")
    return parsed


def parse_record(record: Any, number: int) -> Record:
    """Record ``number`` of a task. Raises TranscriptionError ``bad_argument`` that names the record and the field."""
    return _parse(Record, record, f"record {number}")


def parse_options(options: Any) -> Options:
    """The options of a task. Raises TranscriptionError ``bad_argument`` that names the field, or ``newer_version``."""
    if (version := newer_version(options)) is not None:
        message = f"options: version {version} of the message format, this program reads versions up to {VERSION}"
        raise TranscriptionError("newer_version", f"{message}: update it")
    if options is None or isinstance(options, dict):
        options = {"version": FIRST_VERSION, **(options or {})}
    return _parse(Options, options, "options")


def newer_version(options: Any) -> int | None:
    """The version of a message with these ``options``, if it is newer than what this program reads.

    To be looked at before anything else: what the other fields mean may have changed.
    """
    version = _whole(options.get("version")) if isinstance(options, dict) else None
    return version if type(version) is int and version > VERSION else None


def _parse(model: type[M], value: Any, where: str) -> M:
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise TranscriptionError("bad_argument", f"{where}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """A validation error's first finding in one line: the field and what is wrong with it."""
    item = error.errors()[0]
    field = ".".join(str(part) for part in item["loc"])[:100]
    if item["type"] == "extra_forbidden":
        return f"unknown field {field!r}"
    if item["type"] == "model_type":
        return f"{field}: must be an object" if field else "must be an object"
    problem = str(item["msg"]).removeprefix("Value error, ")
    return f"{field}: {problem}" if field else problem


def _check_limit(count: int, limit: int, what: str) -> None:
    """Raises ValueError, which a model's validation turns into its own error."""
    if count > limit:
        raise ValueError(f"{count} {what}, the limit is {limit}")
