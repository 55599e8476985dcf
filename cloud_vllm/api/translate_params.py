"""What a request for a translation asks for, read and described by one model.

FastAPI's own parameters would do the same, but it looks into their types anew with each request,
which is a good part of all that the gateway does for an answer.
"""

from typing import Annotated, Any, Self

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field, ValidationError

_HEADER = "idempotency-key"


class TranslateParams(BaseModel):
    """The query of a request, and one header."""

    model_config = ConfigDict(frozen=True)

    src: str = Field(description="Language spoken, ISO 639-3.", examples=["eng"])
    tgt: list[str] = Field(
        description="Languages to write; several by commas or by repeating it.",
        examples=[["deu"], ["deu,fra"]],
    )
    features: str | None = Field(
        None, description="A handle from /v1/features, in place of the body."
    )
    idempotency_key: Annotated[str, Field(pattern=r"^[!-~]{1,255}$")] | None = Field(
        None,
        alias=_HEADER,
        title="Idempotency-Key",
        description="Any text that stands for this request: repeated within minutes, it is"
        " answered by the same answer, decoded once.",
    )

    @classmethod
    def from_request(cls, request: Request) -> Self:
        """Read a request's.

        Raises:
            RequestValidationError: something is missing or not well-formed.
        """
        given: dict[str, Any] = dict(request.query_params)
        given.pop(_HEADER, None)
        if "tgt" in given:
            given["tgt"] = request.query_params.getlist("tgt")
        if (key := request.headers.get(_HEADER)) is not None:
            given[_HEADER] = key
        try:
            return cls.model_validate(given)
        except ValidationError as error:
            raise RequestValidationError(
                [{**item, "loc": (_place(item["loc"][0]), *item["loc"])} for item in error.errors()]
            ) from error

    @classmethod
    def parameters(cls) -> list[dict[str, Any]]:
        """The same for the OpenAPI document."""
        schema = cls.model_json_schema()
        return [
            {
                "name": name,
                "in": _place(name),
                "required": name in schema["required"],
                "schema": {key: value for key, value in each.items() if key != "default"},
                "description": each["description"],
            }
            for name, each in schema["properties"].items()
        ]


def _place(name: object) -> str:
    return "header" if name == _HEADER else "query"
