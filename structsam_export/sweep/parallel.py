"""Many models on many images: several images at once, each thread with a model of its own.

A small encoder does not keep two cores busy by itself, two images do. Threads fill the store; the results are then read
from it in order, so that they do not depend on who came first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from structsam_export.datasets import Sample
    from structsam_export.evaluate.predictors import Predictor
    from structsam_export.evaluate.store import Store
    from structsam_export.job import Job
    from structsam_export.models import LoadedModel

Team = TypeVar("Team")
# Weights up to this size are copied for every core; a larger model uses all cores for one image.
SMALL = 100_000_000


def workers_for(loaded: LoadedModel, images: int) -> int:
    """How many images to work on at once: as many as cores with a small model, else one."""
    from structsam_export.environment import usable_cores

    weights = sum(p.numel() * p.element_size() for p in loaded.sam.parameters())
    return max(1, min(usable_cores(), images)) if weights <= SMALL else 1


def predictors_of(jobs: Sequence[Job], loaded: LoadedModel) -> list[Predictor]:
    """The unpatched model first, then one for each job, all on the weights of `loaded`."""
    from structsam_export.evaluate.predictors import Eager, dense_predictor, identity_of

    return [dense_predictor(loaded), *(Eager(job.label, identity_of(job), loaded, job.schedule) for job in jobs)]


def fill(
    samples: Sequence[Sample],
    jobs: Sequence[Job],
    loaded: LoadedModel,
    store: Store,
    workers: int,
    skip_bad: bool,
    names: Mapping[str, str],
    say: Callable[[str], None] = lambda _: None,
) -> int:
    """Put into the store what it lacks, with `workers` threads; each has a copy of the model and one torch thread.

    Args:
        names: `protocol` and `prompt`, as `evaluate` takes them.
        say: called with an image's name once it is done.

    Returns:
        Images that the store held already.

    Raises:
        BadInputError: an image cannot be used (without `skip_bad`; with it, it is left to `evaluate`).
        KeyboardInterrupt: once every thread has stopped, after at most one more model each.
    """
    from structsam_export.eager import own_copy
    from structsam_export.evaluate import Results, facts_of, one_image, why_skipped

    facts = facts_of(**names)
    teams = [(predictors_of(jobs, own_copy(loaded)), Results()) for _ in range(workers)]

    def work(team: tuple[list[Predictor], Results], sample: Sample) -> None:
        try:
            one_image(sample, team[0], facts, store, team[1])
        except Exception as error:
            why_skipped(error, skip_bad=skip_bad)
        say(sample.name)

    each_image(samples, teams, work)
    return sum(results.reused for _, results in teams)


def each_image(samples: Sequence[Sample], teams: Sequence[Team], work: Callable[[Team, Sample], None]) -> None:
    """Call `work(team, sample)` once for every sample, in a thread for each team.

    Several threads have one torch thread each; a single one keeps torch's. The first exception ends all of them, after
    at most one more image each.
    """
    import torch

    left, threads = deque(samples), torch.get_num_threads()

    def run(team: Team) -> None:
        if len(teams) > 1:
            torch.set_num_threads(1)
        while left:
            try:
                sample = left.popleft()
            except IndexError:  # another thread was faster
                break
            work(team, sample)

    with ThreadPoolExecutor(len(teams)) as pool:
        try:
            futures = [pool.submit(run, team) for team in teams]
            wait(futures, return_when=FIRST_EXCEPTION)
        finally:
            left.clear()
            torch.set_num_threads(threads)
    for future in futures:
        future.result()
