"""Where a merchant's own service hears of alerts: an address, and the secret that signs what is sent to it."""

from __future__ import annotations

import base64
import re
import secrets
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from pydantic_core import PydanticCustomError, Url

from schemas.organization import Identifier

URL_LENGTH_MAX = 2048
SECRET_PREFIX = "whsec_"  # of Standard Webhooks; the secret begins after it
_SECRET_BYTES = 32

# Stricter than a browser's reading, so that all who read the address, the resolver too, see the same host in it:
# printable ASCII, with no \ anywhere, no @ before the path and no #. It is not part of the published schema: generators
# of test data take minutes to find text that is an URI, has a pattern and is 2,047 letters long.
_ADDRESS = re.compile(r"(?=[!-~]*\Z)https?://[^/?#@\\]+([/?][^#\\]*)?")


def _web_address(text: str) -> str:
    """An http(s) address with a host; no user name, no fragment."""
    try:
        valid = _ADDRESS.fullmatch(text) is not None and bool(Url(text).host)
    except ValueError:
        valid = False
    if not valid:
        raise PydanticCustomError("url_invalid", "an address like https://example.com/hooks is expected")
    return text


WebhookUrl = Annotated[
    str,
    StringConstraints(min_length=1, max_length=URL_LENGTH_MAX),
    AfterValidator(_web_address),
    Field(examples=["https://example.com/hooks"], json_schema_extra={"format": "uri"}),
]


class WebhookEndpointSpec(BaseModel):
    """The fields that a merchant posts. Every alert of the organization is sent to url."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: WebhookUrl
    description: Annotated[str, StringConstraints(max_length=256, strip_whitespace=True)] = ""


class WebhookEndpoint(WebhookEndpointSpec):
    """secret: `whsec_` and base64, as Standard Webhooks writes it; kept, since every delivery is signed with it."""

    id: Identifier
    organization_id: Identifier
    secret: Annotated[str, Field(repr=False)]
    created_at: int  # µs
    archived: bool = False


def new_signing_secret() -> str:
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()
