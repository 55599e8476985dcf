"""The reference of the settings: ``python -m cloud_vllm settings``, and ``docs/settings.md``."""

import textwrap
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le
from pydantic import AnyHttpUrl

from cloud_vllm.settings import PREFIX, Settings

COMMAND = "python -m cloud_vllm settings"
FILE = Path("docs/settings.md")

GROUPS = {
    "Model and engine": (
        "checkpoint", "engine", "dtype", "quantization", "compile", "tensor_parallel",
        "kv_cache_bytes", "max_concurrent", "max_new_tokens", "max_repetitions", "stream_interval",
    ),
    "Address": ("host", "port", "tls_certificate", "tls_key", "cors_origins"),
    "API keys": ("key_file", "allow_anonymous", "key_rate", "key_burst", "key_max_concurrency"),
    "Limits of requests and streams": (
        "queue_size", "upload_s", "deadline_s", "stream_segments", "stream_idle_s",
    ),
    "Stored packets and answers": (
        "packet_ttl_s", "packet_store_bytes", "idempotency_s", "idempotency_bytes",
    ),
    "Supervision and shutdown": ("probe_interval_s", "probe_timeout_s", "shutdown_s"),
    "Log and traces": ("log_format", "otlp_endpoint"),
}  # fmt: skip
# Variables with the prefix that other parts read.
OTHER_VARIABLES = {
    "ESRT_API_KEY": "API key that the edge runtime sends to the gateway.",
    "ESRT_SERVER": "Address of the gateway, the default of `--server`; `examples/curl.sh` reads it,"
    " too.",
    "ESRT_WHISPER_BASE": "Folder or Hugging Face id of whisper-base, for exports and training.",
}
# Former names of settings.
RENAMED = {
    "ESRT_CANARY_S": "ESRT_PROBE_INTERVAL_S",
    "ESRT_CANARY_TIMEOUT_S": "ESRT_PROBE_TIMEOUT_S",
    "ESRT_FEATURES_BYTES": "ESRT_PACKET_STORE_BYTES",
    "ESRT_FEATURES_S": "ESRT_PACKET_TTL_S",
    "ESRT_KEY_AT_ONCE": "ESRT_KEY_MAX_CONCURRENCY",
    "ESRT_MAX_RUNNING": "ESRT_MAX_CONCURRENT",
    "ESRT_MAX_WAITING": "ESRT_QUEUE_SIZE",
}
# Variables of libraries. The gateway sets a default where the environment sets none.
LIBRARY_VARIABLES = {
    "OMP_NUM_THREADS": "Threads of the engine on a CPU; by default one less than the cores that the"
    " process may use.",
    "VLLM_LOGGING_LEVEL": "Lowest level of vLLM's log records; `WARNING` by default.",
    "OTEL_EXPORTER_OTLP_HEADERS": "HTTP headers of the traces, such as a login.",
    "OTEL_SERVICE_NAME": "Name of the service in the traces; `esrt-gateway` by default.",
    "OTEL_RESOURCE_ATTRIBUTES": "Attributes of the traces, `name=value`, separated by commas.",
    "OTEL_TRACES_SAMPLER": "Sampler of the traces; every request has a trace by default.",
    "SSL_CERT_FILE": "PEM file of the certificates that the edge runtime trusts.",
    "HTTP_PROXY, HTTPS_PROXY, ALL_PROXY, NO_PROXY": "Proxy of the edge runtime; an address"
    " on the same machine is reached without it.",
}

_COLUMNS = 80
_OPTIONS = (
    "checkpoint", "engine", "host", "port", "key_file", "tls_certificate", "tls_key",
    "allow_anonymous",
)  # fmt: skip
_UNITS = {"_s": "seconds", "_bytes": "bytes"}
_FORMS: dict[Any, str] = {
    bool: "true or false",
    Path: "a path",
    str: "a host name or an IP address",
    AnyHttpUrl: "an address such as http://localhost:4318/v1/traces",
    tuple: "origins such as https://app.example, separated by commas",
}


def variable(field: str) -> str:
    """The environment variable of a setting."""
    return f"{PREFIX}{field.upper()}"


def form(field: str) -> str:
    """The form of a setting's value, such as ``a whole number from 0 to 65535``."""
    info = Settings.model_fields[field]
    kind: Any = info.annotation
    if get_origin(kind) not in (Literal, tuple, None):  # a value or None
        kind = next(part for part in get_args(kind) if part is not type(None))
    if get_origin(kind) is Literal:
        return " or ".join(get_args(kind))
    if kind not in (int, float):
        return _FORMS[get_origin(kind) or kind]
    unit = next((f" of {name}" for end, name in _UNITS.items() if field.endswith(end)), "")
    number = f"a {'whole ' if kind is int else ''}number{unit}"
    bounds = {type(bound): bound for bound in info.metadata}
    if Le in bounds:
        return f"{number} from {bounds[Ge].ge} to {bounds[Le].le}"
    if Gt in bounds:
        return f"{number} above {bounds[Gt].gt}"
    return f"{number}, {bounds[Ge].ge} or more"


def default(field: str) -> str:
    """The default of a setting as it is written in the environment; empty for none."""
    value = Settings.model_fields[field].default
    match value:
        case None | ():
            return ""
        case bool():
            return str(value).lower()
        case Path():
            return "/".join(value.parts[-2:])  # within the repository
        case float():
            return f"{value:g}"
        case _:
            return str(value)


def text() -> str:
    """The settings as text of at most 80 columns."""
    lines = list[str]()
    for title, fields in GROUPS.items():
        lines += ["", title]
        for field in fields:
            lines += _paragraph(
                f"{variable(field)}={default(field)}",
                f"{_description(field)} Value: {form(field)}.",
            )
    for title, variables in _other_groups():
        lines += ["", title]
        for name, description in variables.items():
            lines += _paragraph(name, description)
    return "\n".join(lines[1:]) + "\n"


def markdown() -> str:
    """The settings as a Markdown document, ``docs/settings.md``."""
    introduction = (
        "Every setting of the gateway is an environment variable."
        f" `.venv/bin/{COMMAND}` prints this list; with `--markdown` it wrote this page. An empty"
        " variable counts as unset. At its start the gateway rejects a value of a wrong form, and"
        f" warns of a variable that begins with `{PREFIX}` and is not listed here."
    )
    lines = ["# Settings", "", textwrap.fill(introduction, 100, break_on_hyphens=False)]
    for title, fields in GROUPS.items():
        lines += ["", f"## {title}", "", "| variable | default | value | meaning |"]
        lines += ["|---|---|---|---|"]
        for field in fields:
            value = f"`{default(field)}`" if default(field) else "unset"
            option = f" Option: `--{field.replace('_', '-')}`." if field in _OPTIONS else ""
            lines.append(
                f"| `{variable(field)}` | {value} | {form(field)} | {_description(field)}{option} |"
            )
    for title, variables in _other_groups():
        lines += ["", f"## {title}", "", "| variable | meaning |", "|---|---|"]
        lines += [f"| `{name}` | {meaning} |" for name, meaning in variables.items()]
    return "\n".join(lines) + "\n"


def _description(field: str) -> str:
    return str(Settings.model_fields[field].description)


def _other_groups() -> list[tuple[str, dict[str, str]]]:
    return [
        ("Variables of other commands", OTHER_VARIABLES),
        ("Variables of libraries", LIBRARY_VARIABLES),
    ]


def _paragraph(head: str, body: str) -> list[str]:
    lines = textwrap.wrap(body, _COLUMNS - 6, break_on_hyphens=False, break_long_words=False)
    return [f"  {head}", *textwrap.indent("\n".join(lines), 6 * " ").split("\n")]
