"""`fa-tune worker` as a user calls it."""

from __future__ import annotations

from tests.support.command import FaTune


def test_what_cannot_be_started_is_said_once(fa_tune: FaTune) -> None:
    fa_tune("worker", "--devices", "gpu:0").refused(2, "'gpu:0'", "npu:0")
    fa_tune("worker", "--devices", "npu:0,npu:0").refused(2, "two workers")
    fa_tune("worker", "--devices", "cpu", "--until-idle").refused(2, "--devices")
    fa_tune("worker", "--storage", "nonsense").refused(8, "sqlite:///PATH")
    fa_tune("worker", "--devices", "cpu", "--storage", "nonsense").refused(8, "sqlite:///PATH")
    assert fa_tune("worker", "--until-idle").succeeded().out == ""
