"""When the webhook's certificate is renewed, when its authority is published, and when it is shown."""

from __future__ import annotations

import datetime

from autoscaler_shim.webhook.trust import EARLY, LIFETIME, Steps, decide
from kserve_ext.kube.certificates import AUTHORITIES, CERTIFICATE, make

NOW = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
SECOND = datetime.timedelta(seconds=1)
FILES = make(["galaxy-webhook.knative-serving.svc"], NOW, LIFETIME)
TRUSTED = [FILES[AUTHORITIES]] * 2


def test_an_empty_secret_is_filled() -> None:
    assert decide({}, [b"", b""], None, NOW) == Steps(renew=True)


def test_one_that_lacks_a_file_or_cannot_be_read_is_made_anew() -> None:
    assert decide({**FILES, "tls.key": b""}, TRUSTED, None, NOW).renew
    assert decide({**FILES, CERTIFICATE: b"x"}, TRUSTED, None, NOW).renew


def test_the_first_is_published_and_shown() -> None:
    assert decide(FILES, [b"", b""], None, NOW) == Steps(publish=True, show=True)
    assert decide(FILES, TRUSTED, None, NOW) == Steps(show=True)


def test_then_there_is_nothing_to_do_until_it_ends_soon() -> None:
    shown = FILES[CERTIFICATE]
    assert decide(FILES, TRUSTED, shown, NOW + LIFETIME - EARLY - SECOND) == Steps()
    assert decide(FILES, TRUSTED, shown, NOW + LIFETIME - EARLY + SECOND) == Steps(renew=True)


def test_what_somebody_has_taken_out_of_one_configuration_comes_back() -> None:
    assert decide(FILES, [FILES[AUTHORITIES], b""], FILES[CERTIFICATE], NOW) == Steps(publish=True)


def test_a_new_one_is_shown_only_when_it_is_trusted_and_the_former_stays_trusted() -> None:
    new = make(["galaxy-webhook.knative-serving.svc"], NOW + SECOND, LIFETIME, FILES)
    assert new[AUTHORITIES].endswith(FILES[AUTHORITIES])
    assert decide(new, TRUSTED, FILES[CERTIFICATE], NOW) == Steps(publish=True)
    assert decide(new, [new[AUTHORITIES]] * 2, FILES[CERTIFICATE], NOW) == Steps(show=True)
    third = make(["galaxy-webhook.knative-serving.svc"], NOW + SECOND, LIFETIME, new)
    assert third[AUTHORITIES].count(b"BEGIN") == 2
