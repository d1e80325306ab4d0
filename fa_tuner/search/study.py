"""The search as an ordinary Optuna study, driven by ask and tell.

The caller's store is the truth: it knows every evaluated policy. Optuna's trials are brought in line with it
by `reconcile`, so that a process killed between the two leaves nothing lost and nothing twice.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from sqlalchemy.exc import SQLAlchemyError

from fa_tuner.domain.errors import StoreError
from fa_tuner.domain.policy import SkipPolicy
from fa_tuner.search.acquisition import Goal
from fa_tuner.search.measured import MSE
from fa_tuner.search.rectangle import RectangleSampler, Settled
from fa_tuner.search.samplers import make_sampler
from fa_tuner.search.space import Numbers, Rectangle, Space

ORIGIN = "origin"
POLICY = "policy"
OPEN_SECONDS = 20.0

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Score:
    """What the search is told of a policy: `relative` latency (down), `psnr_db` (up), by constraint how far it is
    missed (0 or below where it holds), and the mean squared error by searched case."""

    relative: float
    psnr_db: float
    violations: Mapping[str, float]
    mse: tuple[float, ...] = ()


@dataclass(frozen=True)
class Proposal:
    """A policy that the search asks for. `trial` is Optuna's handle."""

    policy: SkipPolicy
    origin: str
    trial: optuna.Trial


class PolicySearch:
    """One Optuna study over the policies of a space."""

    def __init__(
        self, storage: str | None, name: str, space: Space, sampler: str, seed: int,
        goal: Goal | None = None, resumes: bool = False, priors: Sequence[Numbers] | None = None,
        costs: Sequence[float] | None = None,
    ) -> None:  # fmt: skip
        """`storage` is the URL of a database; without one the study is kept in memory.

        Raises:
            UsageError: see `make_sampler`.
            StoreError: Optuna's storage cannot be opened.
        """
        self.space = space
        self._distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(values) for name, values in space.choices.items()
        }
        self._storage = None if storage is None else _opened(storage, name)
        self._study = _open_study(self._storage, name)
        drawn = len(self._study.get_trials(deepcopy=False))
        self._study.sampler = make_sampler(sampler, space, seed, drawn, goal, resumes, priors, costs)
        with warnings.catch_warnings():
            # marked experimental; it only gives optuna-dashboard its axis names
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            self._study.set_metric_names(["relative latency", "PSNR dB"])

    def close(self) -> None:
        """Give the storage's connections back; a worker tunes study after study."""
        if self._storage is not None:
            _close(self._storage)

    @contextmanager
    def _stored(self) -> Iterator[None]:
        """Optuna's storage failing is the store failing."""
        try:
            yield
        except (optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
            raise StoreError(
                f"Optuna could not read or write study {self._study.study_name}: {_cause(error)}; "
                "nothing measured is lost, the same command goes on"
            ) from error

    def enqueue(self, policy: SkipPolicy, origin: str) -> None:
        """Ask for this policy before anything the sampler has to say; the same policy is queued once."""
        with self._stored():
            self._enqueue(policy, origin)

    def _enqueue(self, policy: SkipPolicy, origin: str) -> None:
        queued = {
            t.user_attrs.get(POLICY) for t in self._study.get_trials(deepcopy=False) if t.state is not TrialState.FAIL
        }
        if policy.key not in queued:
            attrs = {ORIGIN: origin, POLICY: policy.key}
            self._study.enqueue_trial(self.space.to_params(policy), user_attrs=attrs)

    def resumes(self, resumes: bool) -> None:
        """Whether what is asked for next may go on from a kept prefix, see `RectangleSampler`."""
        if isinstance(self._study.sampler, RectangleSampler):
            self._study.sampler.resumes = resumes

    def ask(self, elsewhere: Iterable[SkipPolicy] = (), failed: Iterable[SkipPolicy] = ()) -> Proposal | Settled:
        """The next policy: a queued one, else the sampler's; why there is none, where our sampler expects nothing of
        any policy that is left. `elsewhere` are policies that other workers run; those that `failed` are not asked for
        again by our sampler."""
        others = [self.space.to_rectangle(policy) for policy in elsewhere]
        useless = [self.space.to_rectangle(policy) for policy in failed]
        while True:
            # another worker may see the trial before the claim, and close it as a killed worker's
            with self._stored(), suppress(optuna.exceptions.UpdateFinishedTrialError):
                return self._ask(others, useless)

    def _ask(self, elsewhere: list[Rectangle], failed: list[Rectangle]) -> Proposal | Settled:
        sampler, origin = self._study.sampler, "sampler"
        if isinstance(sampler, RectangleSampler) and not self._study.get_trials(False, (TrialState.WAITING,)):
            proposed = sampler.propose(self._study, elsewhere, failed)
            if isinstance(proposed, str):
                return proposed
            origin = str(proposed.phase)
        trial = self._study.ask(self._distributions)
        policy = self.space.to_policy(trial.params)
        origin = trial.user_attrs.get(ORIGIN, origin)
        for name, value in ((POLICY, policy.key), (ORIGIN, origin)):
            if name not in trial.user_attrs:
                trial.set_user_attr(name, value)
        return Proposal(policy, origin, trial)

    def tell(self, proposal: Proposal, score: Score) -> None:
        with self._stored():
            self._tell(proposal.trial, score)

    def tell_failed(self, proposal: Proposal) -> None:
        """The evaluation gave no figures, or another worker makes it; the sampler learns nothing from it."""
        with self._stored():
            self._tell(proposal.trial, None)

    def reconcile(self, known: Mapping[str, tuple[SkipPolicy, str, Score | None]], alive: Container[str] = ()) -> int:
        """Bring Optuna in line with the evaluations by policy key (a score of None for a failed one).

        Trials left running by a killed process are closed: with the evaluation's figures if it had been
        committed, else as failed, so that their policy can be asked for again; those of the policies that are
        `alive` in other workers are left. Evaluations that Optuna never heard of are added. Returns the number of
        trials mended.
        """
        with self._stored():
            return self._reconcile(known, alive)

    def _reconcile(self, known: Mapping[str, tuple[SkipPolicy, str, Score | None]], alive: Container[str]) -> int:
        mended = 0
        told: set[str] = set()
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state is TrialState.RUNNING:
                key = self._key_of(trial)
                if key in alive:
                    continue
                score = known[key][2] if key in known else None
                self._tell(optuna.Trial(self._study, trial._trial_id), score)
                mended += 1
                if score is not None:
                    told.add(key)
            elif trial.state is TrialState.COMPLETE:
                told.add(self._key_of(trial))
        for key, (policy, origin, score) in known.items():
            if key not in told and score is not None:
                self.add(policy, origin, score)
                mended += 1
        return mended

    def add(self, policy: SkipPolicy, origin: str, score: Score) -> None:
        """Tell of a policy that was not asked for."""
        self._study.add_trial(
            create_trial(
                values=[score.relative, score.psnr_db],
                params=self.space.to_params(policy),
                distributions=dict(self._distributions),
                user_attrs={ORIGIN: origin, POLICY: policy.key, MSE: list(score.mse)},
                constraints=dict(score.violations),
            )
        )

    def _key_of(self, trial: FrozenTrial) -> str:
        if trial.params.keys() == self._distributions.keys():
            return self.space.to_policy(trial.params).key
        return str(trial.user_attrs.get(POLICY, ""))

    def _tell(self, trial: optuna.Trial, score: Score | None) -> None:
        """Another process may do so at the same time, with the same figures."""
        with suppress(optuna.exceptions.UpdateFinishedTrialError), warnings.catch_warnings():
            if score is None:
                self._study.tell(trial, state=TrialState.FAIL, skip_if_finished=True)
                return
            warnings.filterwarnings("ignore", message=".* is already set")  # a constraint: the first one counts
            trial.set_user_attr(MSE, list(score.mse))
            for name, violation in score.violations.items():
                trial.set_constraint(name, violation)
            self._study.tell(trial, [score.relative, score.psnr_db], skip_if_finished=True)


def _open_study(storage: Any, name: str) -> optuna.Study:
    return optuna.create_study(
        study_name=name, storage=storage, directions=["minimize", "maximize"], load_if_exists=True
    )


def _opened(url: str, name: str) -> Any:
    """A storage in which the study is. Tried for some `OPEN_SECONDS`: opened right behind a killed process, Optuna's
    storage failed twice in hundreds of such openings, cause not seen; killing it after each of its statements in turn
    never did it. Opening twice is harmless.

    Raises:
        StoreError: Optuna's tables cannot be opened.
    """
    deadline, pause = time.monotonic() + OPEN_SECONDS, 0.1
    while True:
        try:
            storage = open_storage(optuna_url(url))
            try:
                _open_study(storage, name)
            except BaseException:
                _close(storage)
                raise
            return storage
        except Exception as error:
            if time.monotonic() + pause > deadline:
                raise StoreError(f"Optuna cannot open its tables for study {name}: {_cause(error)}") from error
            time.sleep(pause)
            pause *= 1.5


def _close(storage: Any) -> None:
    storage.remove_session()
    storage.engine.dispose()


def _cause(error: BaseException) -> str:
    """What the database said: Optuna wraps it in an error that says nothing."""
    while (inner := error.__cause__ or getattr(error, "orig", None)) is not None:
        error = inner
    return f"{type(error).__name__}: {error}".splitlines()[0]


def open_storage(url: str) -> Any:
    """Optuna's own tables in the store's database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        options: dict[str, Any] = {"connect_args": {"timeout": 30}}
        if not url.startswith("sqlite"):
            # as the store's own, see there; search and store do not know each other
            alive = {
                "keepalives_idle": 30,
                "keepalives_interval": 10,
                "keepalives_count": 3,
                "tcp_user_timeout": 60_000,
            }
            options = {"pool_pre_ping": True, "connect_args": alive}
        return optuna.storages.RDBStorage(url, engine_kwargs=options)


def optuna_url(url: str) -> str:
    """The URL with the driver that this project installs."""
    return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", url)


def delete(storage: str, names: Iterable[str]) -> None:
    """Forget studies; unknown names are passed over."""
    opened = open_storage(optuna_url(storage))
    try:
        for name in names:
            if name in (s.study_name for s in opened.get_all_studies()):
                optuna.delete_study(study_name=name, storage=opened)
    finally:
        _close(opened)
