"""The OpenAPI document: what each route takes and answers, every status listed."""

from typing import Any, get_args

from fastapi import FastAPI, Response
from fastapi.openapi.utils import get_openapi
from pydantic import TypeAdapter

from device_runtime import bounds
from device_runtime.causes import MEANING, Cause
from device_runtime.secagg_wire import SENT, Box, Share
from device_runtime.wire import Abandon, CheckIn, Enrolment, Problem, ReleaseScores, Scores, Signed
from server import contract

_SHARED = "#/components/schemas/{model}"
_REQUESTS: tuple[Any, ...] = (
    *SENT.values(),
    Enrolment,
    CheckIn,
    Abandon,
    Scores,
    ReleaseScores,
    contract.TaskSettings,
    contract.Rollback,
    contract.NewCodes,
    contract.Publication,
    Signed,
)
_SIGNATURE = (
    "content-digest",
    "fedboard-device",
    "fedboard-task",
    "fedboard-round",
    "fedboard-nonce",
    "fedboard-server",
    "fedboard-time",
    "fedboard-signature",
)


def _one_of(body: Any) -> dict[str, Any]:
    """The schema of a message, or of several of which one is sent."""
    kinds = get_args(body) or (body,)
    each = [{"$ref": _SHARED.format(model=kind.__name__)} for kind in kinds]
    return each[0] if len(each) == 1 else {"oneOf": each}


def documented(
    answer: Any,
    *problems: int,
    body: Any = None,
    parameter: str | None = None,
    second: str | None = None,
    is_signed: bool = False,
    is_operators: bool = False,
) -> dict[str, Any]:
    """What one route takes and answers, for `add_api_route`. The answer None stands for a blob."""
    responses: dict[int | str, Any] = {status: {"model": Problem} for status in sorted(problems)}
    binary = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    if answer is None:
        responses |= {
            200: {"content": binary},
            206: {"content": binary, "description": "The bytes asked for"},
        }
        responses |= {304: {"description": "The device has it already"}}
    else:
        responses[200] = {"model": answer}
    extra: dict[str, Any] = {}
    if body is bytes:
        extra["requestBody"] = {"required": True, "content": binary}
    elif body is not None:
        extra["requestBody"] = {
            "required": True,
            "content": {"application/json": {"schema": _one_of(body)}},
        }
    if parameter is not None:
        names = (parameter, *(() if second is None else (second,)))
        extra["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
            for name in names
        ]
    if is_signed:
        extra["security"] = [{name: [] for name in _SIGNATURE}]
    elif is_operators:
        extra["security"] = [{"token": []}, {"password": []}]
    return {"response_class": Response, "responses": responses, "openapi_extra": extra}


def document(api: FastAPI) -> dict[str, Any]:
    """The document of all routes, with what FastAPI cannot know, as it parses nothing here."""
    if api.openapi_schema is None:
        document = get_openapi(title=api.title, version=api.version, routes=api.routes)
        schemas = document["components"]["schemas"]
        _, shared = TypeAdapter.json_schemas(
            [(kind, "validation", TypeAdapter(kind)) for kind in _REQUESTS], ref_template=_SHARED
        )
        for name, schema in shared["$defs"].items():
            known = schemas.setdefault(name, schema)
            if "properties" in schema:  # of answers that hold the same too
                known["additionalProperties"] = False
        for kind in (*_REQUESTS, Box, Share):
            for name, bound in bounds.of(kind).items():
                schemas[kind.__name__]["properties"][name] |= bound.schema()
        schemas["NewCodes"]["properties"]["count"] |= {
            "minimum": 1,
            "maximum": contract.MOST_CODES,
        }
        schemas["NewCodes"]["properties"]["life_s"] |= {
            "exclusiveMinimum": 0,
            "maximum": contract.LONGEST_CODE_LIFE_S,
        }
        schemas["Abandon"]["properties"]["cause"] = {
            "enum": [cause.value for cause in Cause if MEANING[cause].gives_back]
        }
        schemes: dict[str, Any] = {
            name: {"type": "apiKey", "in": "header", "name": name} for name in _SIGNATURE
        }
        schemes |= {
            "token": {"type": "http", "scheme": "bearer"},
            "password": {"type": "http", "scheme": "basic"},
        }
        document["components"]["securitySchemes"] = schemes
        api.openapi_schema = document
    return api.openapi_schema
