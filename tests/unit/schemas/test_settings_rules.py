"""Settings that would leave a door open are refused when a service starts, and no secret is printed."""

import pytest
from pydantic import SecretStr, ValidationError

from schemas.settings import Settings
from usage_billing.describe import describe_settings

STRIPE = "https://api.stripe.com"
LONG = "ubk_a_key_that_is_long_enough"


def refused(**given: object) -> str:
    with pytest.raises(ValidationError) as error:
        Settings(**given)  # pyright: ignore[reportArgumentType]
    return str(error.value)


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"admin_key": "ubk_short"}, "USAGE_ADMIN_KEY is too short"),
        ({"session_secret": "short"}, "USAGE_SESSION_SECRET is too short"),
        ({"admin_key": LONG, "session_secret": LONG}, "USAGE_SESSION_SECRET equals USAGE_ADMIN_KEY"),
        ({"stripe_api_base": STRIPE}, "STRIPE_API_KEY is the local stand-in's"),
        ({"stripe_api_base": STRIPE, "stripe_api_key": "sk_test_1"}, "STRIPE_WEBHOOK_SECRET is the local stand-in's"),
        (
            {
                "stripe_api_base": STRIPE,
                "stripe_api_key": "sk_test_1",
                "stripe_webhook_secret": "whsec_1, whsec_local",
            },
            "STRIPE_WEBHOOK_SECRET is the local stand-in's",
        ),
        (
            {"stripe_api_base": "http://api.stripe.com", "stripe_api_key": "a", "stripe_webhook_secret": "b"},
            "use https",
        ),
        ({"stripe_api_key": "sk_live_1"}, "STRIPE_API_KEY is a live key, but STRIPE_API_BASE is 127.0.0.1"),
        ({"stripe_api_key": "rk_live_1", "stripe_api_base": "https://stripe.com.evil.example"}, "not Stripe"),
        ({"trusted_proxies": "10.0.0.0/8, proxy"}, "proxy"),
    ],
)
def test_unsafe_settings_are_refused(given: dict[str, object], reason: str) -> None:
    assert reason in refused(**given)


def test_safe_settings_are_taken() -> None:
    Settings()
    Settings(  # pyright: ignore[reportCallIssue]
        admin_key=SecretStr(LONG),
        session_secret=SecretStr(LONG + "2"),
        stripe_api_base=STRIPE,
        stripe_api_key=SecretStr("sk_live_1"),
        stripe_webhook_secret=SecretStr("whsec_1"),
        trusted_proxies="10.0.0.0/8, ::1",
    )


def test_a_refusal_has_no_secret_in_it() -> None:
    text = refused(admin_key="ubk_short", stripe_api_key="sk_live_secret", clickhouse_dsn="http://u:hidden@h/usage")
    assert not any(secret in text for secret in ("ubk_short", "sk_live_secret", "hidden"))


def test_a_password_in_an_address_is_masked() -> None:
    settings = Settings(clickhouse_dsn="https://usage:se:cr@et@clickhouse:8443/usage")  # pyright: ignore[reportCallIssue]
    shown = {row[0]: row[1] for row in describe_settings(settings)}
    assert shown["USAGE_CLICKHOUSE_DSN"] == "https://usage:****@clickhouse:8443/usage"
    assert "cr@et" not in repr(settings)
    assert "cr@et" not in str(settings)


def test_the_first_shard_is_the_server_and_no_password_of_any_is_shown() -> None:
    shards = "https://u:hid:d@en1@ch1:8443/usage, https://u:hidden2@ch2/usage"
    settings = Settings(clickhouse_shards=shards)  # pyright: ignore[reportCallIssue]
    assert settings.clickhouse_dsns == ("https://u:hid:d@en1@ch1:8443/usage", "https://u:hidden2@ch2/usage")
    assert settings.clickhouse_dsn == settings.clickhouse_dsns[0]
    shown = {row[0]: row[1] for row in describe_settings(settings)}
    assert shown["USAGE_CLICKHOUSE_SHARDS"] == "https://u:****@ch1:8443/usage, https://u:****@ch2/usage"
    assert "hid" not in repr(settings)
    assert "differs from the first" in refused(clickhouse_shards=shards, clickhouse_dsn="http://u:hidden3@ch3/usage")
    assert "names a server twice" in refused(clickhouse_shards="http://ch1/usage,http://ch1/usage")
