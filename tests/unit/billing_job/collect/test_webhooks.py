"""Stripe's signature of a webhook."""

import pytest

from billing_job.collect.webhooks import WebhookRefused, verified_event


@pytest.mark.parametrize("signature", [None, "", "t=1,v1=x", "t=99999999999999999999,v1=\u00ff", "\ud800"])
def test_a_signature_that_is_none_is_refused_and_no_error_of_ours(signature: str | None) -> None:
    """The library compares text, which for what is not ASCII was a TypeError, and the answer 500."""
    with pytest.raises(WebhookRefused):
        verified_event(b'"', signature, ["whsec_1", "whsec_2"])
