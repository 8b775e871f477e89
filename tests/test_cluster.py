"""A real SLURM of three nodes on this machine: studies, what goes wrong in them, and that nothing of it is lost."""
from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import forked
import pytest
import torch
from conftest import ROOT, Command, final_state, fingerprint, other_checkout
from test_track import inspected, same_history, segments

from ebm.train.checkpoint import NAME, Checkpoints

pytestmark = pytest.mark.timeout(1200)
STEPS = 50
SMALL = [f"budget.images={8 * STEPS}", "save.every=80", "preflight.disk_gb=0.01", "hang_seconds=30", "cluster=cpu",
         "hydra.launcher.nodes=1", "hydra.launcher.array_parallelism=3", "sampler=heun", "sampler.steps=2", "sample.n=2"]


@dataclass(frozen=True)
class Cluster:
    """Commands of a running cluster."""

    folder: Path
    env: dict[str, str]
    cwd: Path  # of who submits: a `launch` lies there, too

    def ask(self, *command: str, check: bool = True) -> str:
        """What a command answers."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=300, check=False, cwd=ROOT)
        assert not check or done.returncode == 0, f"{' '.join(command)}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def sweep(self, *overrides: str, check: bool = True) -> str:
        """`launch/sweep.py -m` with overrides."""
        done = forked.run("sweep", ["-m", *overrides], processes=1, nodes=1, env=self.env, timeout=300, cwd=self.cwd)
        assert not check or done.returncode == 0, f"sweep.py {' '.join(overrides)}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def status(self, *arguments: str) -> str:
        """`python launch/status.py` with arguments."""
        return self.ask(sys.executable, "launch/status.py", *arguments)

    def state(self, job: str) -> str:
        """The state of a job, by squeue as long as it is there."""
        now = self.ask("squeue", "-h", "-r", "-j", job, "-o", "%T", check=False).strip()
        if now and "Invalid" not in now and now in ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED"):
            return now
        lines = self.ask("sacct", "-n", "-X", "-P", "-j", job, "-o", "State,ExitCode").splitlines()
        return lines[-1].split()[0].split("|")[0] if lines else "PENDING"

    def exit_code(self, job: str) -> str:
        """As sacct has it."""
        return self.ask("sacct", "-n", "-X", "-P", "-j", job, "-o", "ExitCode").splitlines()[-1]


def until(what: Callable[[], Any], seconds: float = 240, *, why: str) -> Any:
    """Waits until ``what`` is true; fails saying why it was waited for."""
    end = time.monotonic() + seconds
    while not (result := what()):
        assert time.monotonic() < end, f"waited {seconds} s in vain for {why}"
        time.sleep(1.0)  # each look costs SLURM, its database and these cores a tenth of a second
    return result


@pytest.fixture(scope="module")
def cluster(command: Command, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Three nodes; where SLURM isn't there and may not be installed, the tests are skipped, and fail for any other reason.
    ``command`` has started what studies are forked from."""
    folder = Path(f"/tmp/ebm-test-{os.getpid()}")  # short: sockets lie there
    env = {**os.environ, "EBM_CLUSTER": str(folder), "EBM_CLUSTER_PORT": str(18_000 + os.getpid() % 1000),
           "EBM_CLUSTER_ARRAY": "20", "OMP_NUM_THREADS": "1", "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    up = subprocess.run(["bash", "slurm/local/up.sh", "3"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=600,
                        check=False)
    sudo = shutil.which("sudo") and not subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False).returncode
    if os.getuid() and not sudo and (asked := re.search(r"error: cannot install them; (ask for: .*)", up.stderr)):
        pytest.skip(f"SLURM isn't installed, and only root may: {asked[1]}")
    assert up.returncode == 0, f"the cluster did not start:\n{up.stdout}{up.stderr}"
    yield Cluster(folder, {**env, "SLURM_CONF": f"{folder}/slurm.conf"}, other_checkout(tmp_path_factory.mktemp("cwd")))
    subprocess.run(["bash", "slurm/local/down.sh"], cwd=ROOT, env=env, capture_output=True, check=True)
    left = subprocess.run(["pgrep", "-f", f"{folder}/"], capture_output=True, text=True, check=False).stdout.split()
    assert not left, f"the cluster has left processes behind: {left}"
    assert not folder.exists()


def faults(folder: Path, plan: dict[int, dict[str, Any]], *, each: float = 0.15,
           seconds: dict[int, list[float]] | None = None) -> list[str]:
    """Overrides that put faults into a study's jobs, by the number that `save.held_out` has in them; a step lasts ``each``
    or, start by start, what ``seconds`` has for that number."""
    folder.mkdir(parents=True)
    shutil.copy(ROOT / "tests" / "faults" / "sitecustomize.py", folder)
    (folder / "faults.json").write_text(json.dumps({"faults": plan, "each": each, "seconds": seconds or {}}))
    return [f"hydra.launcher.setup=['export PYTHONPATH={folder} OMP_NUM_THREADS=1']"]


def read(folder: Path) -> dict[str, dict[str, Any]]:
    """The training points of the newest study of a store, by their number."""
    study = newest(folder)
    points = json.loads(study.read_text())["points"]
    return {number(point["overrides"]): {**point, "study": study.parent} for point in points if point["kind"] == "train"}


def newest(store: Path) -> Path:
    """The record of the newest study of a store."""
    return max((store / "studies").glob("*/study.json"), key=lambda path: path.stat().st_mtime)


def alone(cluster: Cluster, store: Path) -> None:
    """Cancels the samplings of a store's newest study, where a test is about trainings: they would only take its time."""
    points = json.loads(newest(store).read_text())["points"]
    cluster.ask("scancel", *(point["job"] for point in points if point["kind"] == "sample" and point["job"] != "done"))


def number(overrides: list[str]) -> str:
    """What tells the runs of a study apart, and says which fault each has."""
    return next(one.split("=")[1] for one in overrides if one.startswith("save.held_out="))


def step(point: dict[str, Any]) -> int:
    """The last step that a run has logged."""
    path = Path(point["folder"]) / "metrics.jsonl"
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return max(steps, default=0)


def saved_early(point: dict[str, Any]) -> bool:
    """Whether the run has a checkpoint that was saved because somebody asked it to stop."""
    lines = (Path(point["folder"]) / "metrics.jsonl").read_text().splitlines()
    return any(record["event"] == "save" and record["early"] for record in map(json.loads, lines))


def log(point: dict[str, Any]) -> str:
    """What rank 0 and the job's script have said."""
    return "".join(path.read_text(errors="replace") for path in (point["study"] / "logs").glob(f"{point['job']}_0_log.*"))


def over(cluster: Cluster, point: dict[str, Any]) -> bool:
    """Whether the job has ended."""
    return cluster.state(point["job"]) in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")


NAMES = {"reference": 1, "requeue": 2, "kill": 3, "raise": 4, "kill while saving": 5, "nan": 6, "full": 7, "damaged": 8,
         "cancel": 9, "hang": 10, "stuck": 11, "bad node": 12}
PLAN: dict[int, dict[str, Any]] = {
    3: {"do": "kill", "rank": 1, "step": 25}, 4: {"do": "raise", "rank": 1, "step": 25},
    5: {"do": "kill while saving", "rank": 0, "step": 19}, 6: {"do": "nan", "rank": 1, "step": 25},
    7: {"do": "full", "rank": 0, "step": 25}, 10: {"do": "hang", "rank": 1, "step": 25},
    11: {"do": "kill", "rank": 1, "step": 13, "times": 4}, 12: {"do": "bad node"},
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("store")


@pytest.fixture(scope="module")
def command_line(tiny: list[str], store: Path) -> list[str]:
    """Overrides of the study with a fault in each run."""
    return [*without(tiny), *SMALL, f"store={store}", "hydra.launcher.exclude=n1", "hydra.launcher.timeout_min=10",
            *faults(store / "faults", PLAN),
            f"save.held_out={','.join(str(number) for number in NAMES.values())}"]


@pytest.fixture(scope="module")
def limited(cluster: Cluster, tiny: list[str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[dict[str, Any]]]:
    """A study of jobs that need more than their one minute, on a node of their own; one is preempted, early and late."""
    store = tmp_path_factory.mktemp("limited")
    cluster.sweep(*without(tiny), *SMALL, f"store={store}", "hydra.launcher.exclude='n2,n3'", "hydra.launcher.timeout_min=1",
                  "hydra.launcher.signal_delay_s=5", "hydra.launcher.cpus_per_task=4", "track.mode=offline",
                  *faults(store / "faults", {}, seconds={13: [1.4, 1.4, 0.15], 14: [1.4, 0.15]}),
                  "save.held_out=13,14")
    points = {"preempted": read(store)["13"], "limit": read(store)["14"]}
    alone(cluster, store)

    def preempt() -> None:
        cluster.ask("sbatch", "-p", "urgent", "-w", "n1", "--exclusive", "-t", "1", "-o", "/dev/null", "--wrap", "sleep 1")

    def story() -> dict[str, Any]:
        job = points["preempted"]["job"]
        until(lambda: cluster.state(job) == "RUNNING", why="the first start")
        preempt()
        until(lambda: cluster.state(job) == "PENDING", why="the first requeue")
        until(lambda: cluster.state(job) == "RUNNING", why="the second start")
        began = time.monotonic()
        points["preempted"]["early"] = step(points["preempted"])
        until(lambda: time.monotonic() - began > 49 or cluster.state(job) != "RUNNING", why="the last fifth of the limit")
        points["preempted"]["late"] = step(points["preempted"])
        preempt()
        for name, point in points.items():
            until(lambda point=point: over(cluster, point), 500, why=f"the end of {name}")  # type: ignore[misc]
            point["state"] = cluster.state(point["job"])
        return points

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(story)


def without(tiny: list[str]) -> list[str]:
    """The tiny run's overrides that are not given anew here."""
    given = {one.split("=")[0] for one in SMALL}
    return [one for one in tiny if one.split("=")[0] not in {*given, "save.held_out"}]


@pytest.fixture(scope="module")
def first(cluster: Cluster, store: Path, command_line: list[str], limited: object) -> dict[str, dict[str, Any]]:
    """The study with a fault in each run, submitted once and come to its end; its points by name."""
    started = time.monotonic()
    said = cluster.sweep(*command_line)
    assert time.monotonic() - started < 30
    assert "12 runs and 12 samplings queued in 2 arrays" in said
    points = {name: read(store)[str(number)] for name, number in NAMES.items()}

    def requeue(name: str) -> None:
        until(lambda: step(points[name]) >= 14, why=f"step 14 of {name}")
        cluster.ask("scontrol", "requeue", points[name]["job"])

    def cancel() -> None:
        until(lambda: step(points["cancel"]) >= 14, why="step 14 of cancel")
        cluster.ask("scancel", points["cancel"]["job"])
        points["cancel"]["asked"] = time.monotonic()
        until(lambda: cluster.state(points["cancel"]["job"]) == "CANCELLED", 60, why="CANCELLED")
        points["cancel"]["seconds"] = time.monotonic() - points["cancel"]["asked"]

    def damage() -> None:
        requeue("damaged")
        until(lambda: cluster.state(points["damaged"]["job"]) == "PENDING", why="the requeued job")
        path = Checkpoints(Path(points["damaged"]["folder"]) / "checkpoints", keep=1).paths()[0]
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        points["damaged"]["path"] = path

    with ThreadPoolExecutor(3) as pool:
        futures = [pool.submit(requeue, "requeue"), pool.submit(cancel), pool.submit(damage)]
        assert "0 runs and 0 samplings queued" in cluster.sweep(*command_line)
        for future in futures:
            future.result()
    for name, point in points.items():
        until(lambda point=point: over(cluster, point), 500, why=f"the end of {name}")  # type: ignore[misc]
        point["state"], point["code"] = cluster.state(point["job"]), cluster.exit_code(point["job"])
    return points


@pytest.fixture(scope="module")
def truth(first: dict[str, dict[str, Any]]) -> str:
    """The final state of the run that nothing interrupted."""
    assert first["reference"]["state"] == "COMPLETED"
    assert "requeued" not in log(first["reference"])
    return fingerprint(final_state(Path(first["reference"]["folder"])))


@pytest.mark.parametrize("name", ["requeue", "kill", "kill while saving", "damaged", "hang", "bad node"])
def test_a_job_comes_back_and_ends_as_if_nothing_had_been(first: dict[str, dict[str, Any]], truth: str, name: str) -> None:
    point = first[name]
    assert point["state"] == "COMPLETED", log(point)
    assert point["code"] == "0:0"
    assert ("resumed at step" in log(point)) == (name != "bad node")
    assert fingerprint(final_state(Path(point["folder"]))) == truth


def test_an_administrators_requeue_loses_no_step(first: dict[str, dict[str, Any]]) -> None:
    assert saved_early(first["requeue"]), "it was not saved when asked"


def test_a_damaged_checkpoint_is_passed_over(first: dict[str, dict[str, Any]]) -> None:
    assert "damaged" in log(first["damaged"])


@pytest.mark.parametrize(("name", "words"), [
    ("raise", "RuntimeError: a fault of the test's"), ("nan", "the loss was not finite"), ("full", "File too large"),
    ("stuck", "no progress over 3 restarts")])
def test_a_fault_ends_the_job_as_failed_and_says_where(cluster: Cluster, first: dict[str, dict[str, Any]], name: str,
                                                       words: str) -> None:
    point = first[name]
    assert point["state"] == "FAILED", log(point)
    assert point["code"] != "0:0"
    failure = json.loads((Path(point["folder"]) / "failure.json").read_text())
    assert words in failure["error"]
    assert failure["node"] in ("n2", "n3")
    if name != "stuck":
        assert failure["rank"] == {"raise": 1, "nan": failure["rank"], "full": 0}[name]
    assert words in " ".join(cluster.status(str(point["study"])).split())


def test_parameters_of_a_bad_step_are_never_saved(first: dict[str, dict[str, Any]]) -> None:
    steps = [int(NAME.fullmatch(path.name)[1]) for path in  # type: ignore[index]
             (Path(first["nan"]["folder"]) / "checkpoints").glob("step-*.pt")]
    assert max(steps) == 20, "the loss of step 25 was not finite"


def test_a_hang_leaves_the_stacks_of_all_threads(first: dict[str, dict[str, Any]]) -> None:
    assert "requeued after exit code" in log(first["hang"])
    stacks = list(Path(first["hang"]["folder"]).glob("stacks-*.txt"))
    assert any("act" in path.read_text() and "Thread" in path.read_text() for path in stacks), "the sleeping line is not shown"


def test_a_bad_node_is_named_and_avoided(cluster: Cluster, first: dict[str, dict[str, Any]], store: Path) -> None:
    said, bad = log(first["bad node"]), (store / "faults" / "bad-node").read_text()
    assert f"node {bad}: " in said
    assert "has 0.00 GB of free space" in said
    node = cluster.ask("sacct", "-n", "-X", "-P", "-j", first["bad node"]["job"], "-o", "NodeList").split()[-1]
    assert node == ({"n2", "n3"} - {bad}).pop()


def test_scancel_saves_first_and_ends_as_cancelled_within_killwait(first: dict[str, dict[str, Any]]) -> None:
    point = first["cancel"]
    assert point["state"] == "CANCELLED"
    assert point["seconds"] < 20
    newest = Checkpoints(Path(point["folder"]) / "checkpoints", keep=1).newest()
    assert newest is not None
    assert int(NAME.fullmatch(newest.name)[1]) >= 14  # type: ignore[index]


def test_status_counts_restarts_and_shows_logs(cluster: Cluster, first: dict[str, dict[str, Any]]) -> None:
    study = str(first["reference"]["study"])
    rows = {cells[3].strip(): cells for line in cluster.status(study).splitlines() if len(cells := line.split("│")) > 10}
    restarts = {name: rows[first[name]["job"]][8].strip() for name in ("reference", "requeue", "kill", "stuck", "raise")}
    assert restarts == {"reference": "", "requeue": "1", "kill": "1", "stuck": "3", "raise": ""}
    shown = cluster.status(study, "--logs", first["requeue"]["job"])
    assert "resumed at step" in shown
    assert "_1_log.err" in shown, "rank 1's log is not shown"


def test_status_is_refreshed_until_it_is_stopped(cluster: Cluster, first: dict[str, dict[str, Any]]) -> None:
    ours, theirs = pty.openpty()
    command = [sys.executable, "launch/status.py", str(first["reference"]["study"]), "--watch", "0.5"]
    env = {**cluster.env, "TERM": "xterm", "COLUMNS": "220", "LINES": "90"}
    with subprocess.Popen(command, env=env, cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs,
                          preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) as process:  # a shell's & ignores it
        os.close(theirs)
        seen = ""
        while seen.count("images/s") < 3:
            seen += os.read(ours, 1 << 16).decode(errors="replace")
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(OSError):  # the terminal is gone when its last user is
            while os.read(ours, 1 << 16):
                pass
        assert process.wait(20) == 0
    os.close(ours)
    assert "COMPLETED" in seen


def test_samples_follow_their_own_run_alone(cluster: Cluster, first: dict[str, dict[str, Any]], truth: str) -> None:
    study = json.loads((first["reference"]["study"] / "study.json").read_text())
    for point in study["points"]:
        if point["kind"] == "sample":
            run = next(p for p in first.values() if point["folder"].startswith(p["folder"] + "/"))
            wanted = "COMPLETED" if run["state"] == "COMPLETED" else "CANCELLED"
            until(lambda point=point, wanted=wanted: cluster.state(point["job"]) == wanted, why=f"{wanted} of {point['job']}")  # type: ignore[misc]
            assert any(Path(point["folder"]).glob("*.npz")) == (wanted == "COMPLETED")


def test_a_bad_override_is_refused_with_nothing_queued(
        cluster: Cluster, command_line: list[str], store: Path, truth: str) -> None:
    studies = len(list((store / "studies").iterdir()))
    before = cluster.ask("squeue", "-h", "-r", "-o", "%F")
    for bad, words in ((["schedule=single", "schedule.level=-1"], "level"), (["model.network.wdith=3"], "wdith"),
                       (["budget.batch=9"], "budget.batch: 9 is not accepted; it must divide among"),
                       (["hydra.launcher.nodes=0"], "hydra.launcher.nodes: 0 is not accepted"),
                       (["hydra.launcher.timeout_min=2"], "hydra.launcher.signal_delay_s: 120 is not accepted;"),
                       (["hydra.launcher.partition=none"], "sbatch refused")):
        said = cluster.sweep(*command_line[:-1], "save.held_out=1,2", "seed=7,8", *bad, check=False)
        assert sum(line.startswith("error:") for line in said.splitlines()) == 1, said
        assert words in said
        assert "Traceback" not in said
    assert set(cluster.ask("squeue", "-h", "-r", "-o", "%F").split()) <= set(before.split())
    assert len(list((store / "studies").iterdir())) == studies


@pytest.fixture(scope="module")
def moved(cluster: Cluster, first: dict[str, dict[str, Any]], tiny: list[str],
          tmp_path_factory: pytest.TempPathFactory) -> Iterator[Future[None]]:
    """Two runs that are cancelled and queued again on more and on fewer processes, while another study runs: it is mostly
    waited for."""

    def story() -> None:
        store = tmp_path_factory.mktemp("processes")
        command = [*without(tiny), *SMALL, f"store={store}", *faults(store / "faults", {})]
        cluster.sweep(*command, "save.held_out=17,18")
        before = read(store)
        for point in before.values():
            until(lambda point=point: step(point) >= 14, why="step 14")  # type: ignore[misc]
        said = cluster.status(str(before["17"]["study"]), "--cancel")
        assert "4 jobs cancelled" in said, "two runs and their samplings"
        for point in before.values():
            until(lambda point=point: over(cluster, point), 60, why="the end of what is cancelled")  # type: ignore[misc]
        truth = final_state(Path(first["reference"]["folder"]))
        for number, processes in (("18", 4), ("17", 1)):
            said = cluster.sweep(*command, f"save.held_out={number}", f"hydra.launcher.tasks_per_node={processes}",
                                 "report=status")
            if processes > 1:
                alone(cluster, store)
            point = read(store)[number]
            assert point["folder"] == before[number]["folder"]
            until(lambda point=point: over(cluster, point), why=f"the end on {processes} processes")  # type: ignore[misc]
            assert cluster.state(point["job"]) == "COMPLETED", log(point)
            assert "resumed at step" in log(point)
            assert len(list((point["study"] / "logs").glob(f"{point['job']}_*_log.out"))) == processes
            state = final_state(Path(point["folder"]))
            for name, value in state.items():
                if name.startswith((".model", ".averages")):
                    torch.testing.assert_close(value, truth[name], rtol=1e-3, atol=1e-4)
        job = said.split("status: job ")[1].split(",")[0]
        until(lambda: cluster.state(job) == "COMPLETED", why="the report")
        shown = (point["study"] / "logs" / f"{job}_0_log.out").read_text()
        assert shown.count("COMPLETED") == 2, "the report came before the run and its sampling had ended"

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(story)


def test_what_failed_is_queued_again_alone_and_ends_as_if_nothing_had_been(
        cluster: Cluster, first: dict[str, dict[str, Any]], truth: str, store: Path, moved: object) -> None:
    said = cluster.status(str(first["reference"]["study"]), "--resubmit", "failed")
    failed = ["raise", "nan", "full", "cancel", "stuck"]
    assert f"{len(failed)} runs and {len(failed)} samplings queued" in said
    points = read(store)
    alone(cluster, store)
    for name in failed:
        point = points[str(NAMES[name])]
        until(lambda point=point: over(cluster, point), why=f"the end of {name}")  # type: ignore[misc]
        assert cluster.state(point["job"]) == "COMPLETED", log(point)
        assert fingerprint(final_state(Path(point["folder"]))) == truth


@pytest.mark.parametrize("name", ["preempted", "limit"])
def test_no_warning_is_too_early_or_too_late(limited: Future[dict[str, Any]], truth: str, name: str) -> None:
    point = limited.result()[name]
    assert point["state"] == "COMPLETED", log(point)
    assert fingerprint(final_state(Path(point["folder"]))) == truth
    assert saved_early(point), "it was not saved when the warning came"
    if name == "preempted":
        assert point["early"] <= 10
        assert point["late"] > point["early"]


@pytest.mark.parametrize("name", ["preempted", "limit"])
def test_wandb_has_every_step_of_a_requeued_job_once(limited: Future[dict[str, Any]], name: str) -> None:
    point = limited.result()[name]
    run = Path(point["folder"])
    starts = sum(record["event"] == "start" for record in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()))
    assert len(segments(run)) >= starts >= {"preempted": 3, "limit": 2}[name]
    same_history(run)
    group = next(record["run"]["run_group"] for record in inspected(segments(run)[0]) if record["type"] == "run")
    assert group == point["study"].name


def test_a_run_goes_on_with_fewer_or_more_processes(moved: Future[None]) -> None:
    moved.result()


def kill_node(cluster: Cluster, node: str) -> None:
    """A node's power cut: its daemon, its job steps and their processes, all at once."""
    pids = {int((cluster.folder / "run" / f"slurmd-{node}.pid").read_text())}
    for environ in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            content = environ.read_bytes().split(b"\0")
            if f"SLURMD_NODENAME={node}".encode() in content and f"SLURM_CONF={cluster.folder}/slurm.conf".encode() in content:
                pids.add(int(environ.parent.name))
                status = (environ.parent / "status").read_text()
                parent = int(status.split("PPid:")[1].split()[0])
                if "slurmstepd" in Path(f"/proc/{parent}/comm").read_text():
                    pids.add(parent)
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_a_run_on_two_nodes_survives_the_death_of_one(cluster: Cluster, tiny: list[str], command: Command,
                                                      tmp_path_factory: pytest.TempPathFactory) -> None:
    store = tmp_path_factory.mktemp("nodes")
    cluster.sweep(*without(tiny), *SMALL, f"store={store}", "hydra.launcher.nodes=2", "data.loader=auto",
                  *faults(store / "faults", {}, each=0.3), "save.held_out=15")
    point = read(store)["15"]
    alone(cluster, store)
    until(lambda: step(point) >= 14, why="step 14")
    assert cluster.ask("squeue", "-h", "-r", "-j", point["job"], "-o", "%N").strip() == "n[1-2]"
    kill_node(cluster, "n2")
    # sinfo would show what is left of the job there instead
    until(lambda: "State=DOWN" in cluster.ask("scontrol", "show", "node", "-o", "n2"), why="n2 to be known as dead")
    until(lambda: over(cluster, point), why="the end of the run")
    assert cluster.state(point["job"]) == "COMPLETED", log(point)
    assert log(point).count("resumed at step") == 1, "it came back more often than it was lost"
    assert cluster.ask("sacct", "-n", "-X", "-P", "-j", point["job"], "-o", "NodeList").split()[-1] == "n[1,3]"
    command("train", *tiny, f"run={store}/whole", f"budget.images={8 * STEPS}", "save.held_out=15", processes=4, nodes=2)
    assert fingerprint(final_state(Path(point["folder"]))) == fingerprint(final_state(store / "whole"))
    subprocess.Popen(["setsid", "slurmd", "-N", "n2", "-f", f"{cluster.folder}/slurm.conf"], env=cluster.env,
                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).wait(20)


def test_dry_prints_the_plan_with_long_arrays_split_and_submits_nothing(
        cluster: Cluster, command_line: list[str], truth: str) -> None:
    before = cluster.ask("squeue", "-h", "-r", "-o", "%F")
    said = cluster.sweep(*command_line, "seed=100,101", "dry=true")
    assert "array 2 element 3 " in said, "24 runs in arrays of at most 20"
    assert "array 1, element by element" in said
    assert "array 2, element by element" in said
    assert "#SBATCH --requeue" in said
    assert "GPU-hours" in said
    assert set(cluster.ask("squeue", "-h", "-r", "-o", "%F").split()) <= set(before.split())
