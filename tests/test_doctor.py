"""What `restrl doctor` says of isolation."""

from __future__ import annotations

import pytest

from restrl import doctor


@pytest.mark.parametrize(
    ("reasons", "well", "said"),
    [
        ({}, True, []),
        (
            dict.fromkeys(("tier1+tier2", "tier1"), "new namespaces: Operation not permitted"),
            True,
            ["tier 2 alone", "kernel.apparmor_restrict_unprivileged_userns=0"],
        ),
        (
            dict.fromkeys(("tier1+tier2", "tier2"), "landlock: not in this kernel"),
            False,
            ["allow_unsafe", "lsm="],
        ),
        (
            {
                "tier1+tier2": "new namespaces: No space left on device",
                "tier2": "landlock: not in this kernel",
                "tier1": "new namespaces: No space left on device",
            },
            False,
            ["user.max_user_namespaces", "lsm="],
        ),
    ],
)
def test_what_is_missing_and_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, reasons: dict[str, str], well: bool, said: list[str]
) -> None:
    monkeypatch.setattr(doctor, "_tier", lambda tier: reasons.get(tier, ""))
    lines, answer = doctor.examine()
    text = "\n".join(lines)
    assert answer is well
    for tier in ("tier1+tier2", "tier2", "tier1"):
        assert f"  {tier:<12} {reasons.get(tier) or 'works'}" in lines
    for part in said:
        assert part in text
    assert text.count("to get more") == len({r.split(":")[0] for r in reasons.values()})


def test_the_reason_of_a_tier_is_the_set_up_s_own(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise doctor.RestrlError(
            "no sandbox can be set up here (tier1: new namespaces: Operation not permitted); use a kernel"
        )

    monkeypatch.setattr(doctor, "Verifier", refuse)
    assert doctor._tier("tier1") == "new namespaces: Operation not permitted"
