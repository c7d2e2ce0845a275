"""What a client may ask for, field by field, and what it is told when it asks for something else."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from trimtab.foreign import Malformed, parse_json


class Refused(Exception):
    """An answer in OpenAI's form of an error."""

    def __init__(
        self, status: int, message: str, *, param: str | None = None, code: str | None = None
    ):
        self.status = status
        kind = "invalid_request_error" if status < 500 else "server_error"
        if status == 401:
            kind = "authentication_error"
        if status == 429:
            kind = "rate_limit_error"
        self.error = {"message": message, "type": kind, "param": param, "code": code}


Texts = Annotated[
    list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)
]
Nothing = Annotated[Any, Field(exclude=True)]
"""What clients send and nobody here heeds."""


class StreamOptions(BaseModel):
    """How a stream ends."""

    include_usage: bool = False
    include_obfuscation: bool = False


class Body(BaseModel):
    """What both kinds of requests have in common. A field that is null was not given."""

    model_config = ConfigDict(extra="forbid")

    model: str
    max_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    n: int = Field(1, ge=1, le=64)
    seed: int | None = None
    stop: Texts = Field([], max_length=16)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    dials: dict[str, float | str] = {}
    """The strength of each dial that is turned, by its name."""
    shift: bool = False
    """With log-probs: by how much the dials moved each token's."""
    # No other value of these is known here.
    frequency_penalty: float = Field(0, ge=0, le=0)
    presence_penalty: float = Field(0, ge=0, le=0)
    logit_bias: dict[str, float] = Field({}, max_length=0)
    user: Nothing = None
    metadata: Nothing = None
    store: Nothing = None
    service_tier: Nothing = None


class Message(BaseModel):
    """A message of a chat; what else it has, a template may heed."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[dict[str, Any]] = ""


class ChatBody(Body):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=20)
    response_format: dict[Literal["type"], Literal["text"]] = {}
    tools: list[Any] = Field([], max_length=0)
    tool_choice: Literal["none", "auto"] = "none"
    parallel_tool_calls: Nothing = None
    modalities: list[Literal["text"]] = ["text"]


class CompletionBody(Body):
    """`POST /v1/completions`."""

    prompt: str | list[str] | list[int] | list[list[int]]
    logprobs: int | None = Field(None, ge=0, le=20)
    echo: Literal[False] = False
    best_of: Literal[1] = 1

    @property
    def prompts(self) -> list[str | list[int]]:
        """Each prompt by itself."""
        one = isinstance(self.prompt, str) or (
            bool(self.prompt) and isinstance(self.prompt[0], int)
        )
        return [self.prompt] if one else list(self.prompt)  # type: ignore[list-item]


B = TypeVar("B", bound=Body)


def parsed(kind: type[B], data: bytes) -> B:
    """A request from its JSON. Raises Refused."""
    try:
        given = parse_json(data, finite=True)
    except Malformed as error:
        raise Refused(400, f"the body is no JSON: {error}") from error
    if not isinstance(given, dict):
        raise Refused(400, f"expected a JSON object, given a {type(given).__name__}")
    try:
        return kind(**{name: value for name, value in given.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        message = first["msg"][:1].lower() + first["msg"][1:]
        if first["type"] == "extra_forbidden":
            message = "there is no such field here"
        raise Refused(400, f"{place}: {message}", param=place) from error
