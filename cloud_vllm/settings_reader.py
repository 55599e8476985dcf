"""Reader of the settings: errors name the variable and its form; unknown variables are logged."""

import difflib
import logging
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from cloud_vllm.settings import PREFIX, Settings
from cloud_vllm.settings_reference import COMMAND, OTHER_VARIABLES, RENAMED, form, variable
from esrt.errors import RequestError

# Variables that Kubernetes sets for each Service in the namespace of a pod.
_SERVICE_LINK = re.compile(r"\w+_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)")
_SERVICE_ADDRESS = re.compile(r"(tcp|udp|sctp)://")
_LONGEST_VALUE = 64

_log = logging.getLogger(__name__)


def read_settings(values: Mapping[str, Any], name_of: Callable[[str], str]) -> Settings:
    """Read the settings from given values, then from the environment.

    Args:
        values: fields of `Settings` that do not come from the environment.
        name_of: the user's name of such a field, for example ``--port`` of ``port``.

    Raises:
        RequestError: a setting is unknown or has a wrong form.
    """
    try:
        return Settings(**values)
    except ValidationError as error:
        details = error.errors(include_url=False)
        causes = dict.fromkeys(_cause(detail, values, name_of) for detail in details)
        remedy = f"See: {COMMAND}"
        # Those of variables, not of options.
        read = [d["input"] for d in details if d["loc"] and d["loc"][0] not in values]
        if any(_SERVICE_ADDRESS.match(str(value)) for value in read):
            remedy = (
                "Kubernetes sets such a variable for a Service of this name. Set the variable"
                " yourself, or set enableServiceLinks: false."
            )
        cause = "; ".join(causes)
        raise RequestError(cause if cause.endswith("?") else f"{cause}.", remedy) from error


def warn_of_unknown_variables(environment: Mapping[str, str] = os.environ) -> None:
    """Log each variable with the prefix that nothing reads, with the most similar known name.

    Variables that Kubernetes sets for Services take one line together.
    """
    known = [*map(variable, Settings.model_fields), *OTHER_VARIABLES]
    unknown = sorted(
        name
        for name in environment
        if name.upper().startswith(PREFIX) and name.upper() not in known
    )
    links = [
        name
        for name in unknown
        if _SERVICE_LINK.fullmatch(name) or _SERVICE_ADDRESS.match(environment[name])
    ]
    for name in unknown:
        if name not in links:
            _log.warning(
                "%s is no setting and has no effect. %s", name, _hint(name.upper(), known, PREFIX)
            )
    if links:
        _log.info("Variables that Kubernetes sets for Services are ignored: %s.", ", ".join(links))


def _cause(detail: ErrorDetails, values: Mapping[str, Any], name_of: Callable[[str], str]) -> str:
    if not detail["loc"]:  # of two settings
        given, missing = detail["ctx"]["given"], detail["ctx"]["missing"]
        name = name_of if given in values else variable
        return f"{name(given)} is set without {name(missing)}, but they belong together"
    field = str(detail["loc"][0])
    if field not in Settings.model_fields:
        return f"{name_of(field)} is no setting. {_hint(field, Settings.model_fields)}"
    name = name_of if field in values else variable
    # For a list the error is that of one element.
    value = str(detail["input"])[:_LONGEST_VALUE]
    return f"{name(field)} is {value!r}, expected {form(field)}"


def _hint(name: str, known: Iterable[str], prefix: str = "") -> str:
    # The prefix would make every variable similar.
    names = {one.removeprefix(prefix): one for one in known}
    if prefix:
        names |= {old.removeprefix(prefix): new for old, new in RENAMED.items()}
    similar = difflib.get_close_matches(name.removeprefix(prefix), names, n=1)
    return f"Did you mean {names[similar[0]]}?" if similar else f"See: {COMMAND}"
