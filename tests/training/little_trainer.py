"""A trainer without torch, for tests of supervision: `python -m tests.training.little_trainer RUN_DIR`.

It keeps to the same terms as `training.alignment` (metrics, result.json, error.json, exit codes, checkpoints that
are resumed). The configuration's `aspect` names what it does, and `num_epochs` how many steps it takes.
`test_services.py` runs the real trainer once to the same end.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from training.alignment.config import RejectionSamplingConfig, SampleConfig
from training.alignment.run_dir import RunDir

INTERRUPTED, WAITING = 75, 76


def main() -> None:
    run_dir = RunDir(Path(sys.argv[1]))
    config = run_dir.config()
    if config.kind == "score_comparisons":
        return score(run_dir)
    if config.kind == "preview_judge":
        return preview(run_dir)
    if config.kind == "rejection_sampling":
        return divide(run_dir, config)
    if config.kind == "sample":
        return do_part(run_dir, config)
    sys.stdout.write(f"\x1b[31mlittle trainer\x1b[0m {config.aspect}\n")
    sys.stdout.flush()
    num_steps = int(config.num_epochs)
    {
        "overall": succeed,
        "crash": crash,
        "error": error,
        "exit 3": lambda *_: sys.exit(3),
        "interrupted": lambda *_: sys.exit(INTERRUPTED),
        "no result": lambda *_: None,
        "wait": wait,
        "stubborn": stubborn,
        "environment": environment,
        "steps": steps,
        "rewrite": rewrite,
    }[config.aspect](run_dir, num_steps)


def succeed(run_dir: RunDir, num_steps: int) -> None:
    for step in range(1, num_steps + 1):
        run_dir.log(step=step, phase="train", progress=step / num_steps, loss=1 / step)
    run_dir.log(step=num_steps, phase="validation", progress=1.0, accuracy=0.75, loss=float("nan"))
    run_dir.write_result({"accuracy": 0.75, "interval": [0.5, 1.0], "loss": float("nan")})


def crash(run_dir: RunDir, num_steps: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def error(run_dir: RunDir, num_steps: int) -> None:
    run_dir.write_error(ValueError("backbone: no such model"))
    sys.exit(1)


def wait(run_dir: RunDir, num_steps: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(INTERRUPTED))
    run_dir.log(step=1, phase="train", progress=0.5, loss=2.0)
    time.sleep(600)


def stubborn(run_dir: RunDir, num_steps: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        (run_dir.path / "child.pid").write_text(str(os.getpid()))
        time.sleep(600)
    run_dir.log(step=1, phase="train", progress=0.5, loss=2.0)
    time.sleep(600)


def environment(run_dir: RunDir, num_steps: int) -> None:
    run_dir.write_result({"names": sorted(os.environ), "argv": sys.argv[1:], "cwd": os.getcwd()})


def steps(run_dir: RunDir, num_steps: int) -> None:
    """One step each 0.1 s, with a checkpoint after each; resumes after the newest."""
    latest = run_dir.latest_checkpoint()
    done = latest[1]["step"] if latest else 0
    run_dir.truncate_metrics(done, "train")
    for step in range(done + 1, num_steps + 1):
        time.sleep(0.1)
        run_dir.log(step=step, phase="train", progress=step / num_steps, loss=1 / step, pid=os.getpid())
        run_dir.save_checkpoint(step, lambda folder: None, {})
    pids = {line["pid"] for line in run_dir.read_metrics()}
    run_dir.write_result({"num_steps": num_steps, "num_processes": len(pids)})


def divide(run_dir: RunDir, config: RejectionSamplingConfig) -> None:
    """Rounds of shards, which the policy's name tells what to do, by way of `num_samples` steps."""
    if os.environ.get("RANK", "0") != "0":
        while not run_dir.read_shards():  # the launcher ends all processes when the first one ends so
            time.sleep(0.02)
        sys.exit(WAITING)
    for done in range(1, config.num_rounds + 1):
        names = [run_dir.path / f"round_{done}" / f"shard_{shard}.json" for shard in range(config.num_shards)]
        if missing := [name for name in names if not name.exists()]:
            names[0].parent.mkdir(exist_ok=True)
            run_dir.log(step=done, phase="generate", progress=done / (config.num_rounds + 1))
            told = {"policy": config.policy, "num_samples": config.num_samples}
            run_dir.write_shards([SampleConfig(output=str(name), **told) for name in missing])
            sys.exit(WAITING)
    written = sorted(str(path.relative_to(run_dir.path)) for path in run_dir.path.glob("round_*/shard_*"))
    run_dir.write_result({"written": written})


def do_part(run_dir: RunDir, config: SampleConfig) -> None:
    behaviour, number = config.policy.rpartition("/")[2], Path(config.output).stem
    if (behaviour, number) == ("second_fails", "shard_1"):
        return error(run_dir, config.num_samples)
    if (behaviour, number) == ("second_waits", "shard_1"):
        return wait(run_dir, config.num_samples)
    if behaviour == "steps":
        steps(run_dir, config.num_samples)
    if behaviour != "loses":
        Path(config.output).write_text(str(os.getpid()))
    run_dir.write_result({"output": config.output})


def rewrite(run_dir: RunDir, num_steps: int) -> None:
    """What a resumed trainer does to metrics.jsonl: lines are taken back and written again."""
    for step in range(1, 6):
        run_dir.log(step=step, phase="train", progress=0.5, loss=1.0)
    _until((run_dir.path / "go_on").exists)
    run_dir.truncate_metrics(2, "train")
    run_dir.log(step=3, phase="train", progress=0.6, loss=0.5)
    _until((run_dir.path / "finish").exists)
    run_dir.write_result({"loss": 0.5})


def score(run_dir: RunDir) -> None:
    """Two members, one of which likes short responses; a response that says so gets a score that is no number."""
    rows = [json.loads(line) for line in (run_dir.path / "prompts.jsonl").read_text().splitlines()]
    with (run_dir.path / "scores.jsonl").open("w") as file:
        for row in rows:
            texts = [response["content"] for response in row["responses"]]
            liked = [float("nan") if text == "not a number" else float(len(text)) for text in texts]
            file.write(json.dumps({"id": row["id"], "scores": [liked, [-one for one in liked]]}) + "\n")
    run_dir.log(step=len(rows), phase="score", progress=1.0)
    run_dir.write_result({"num_members": 2, "num_prompts": len(rows)})


def preview(run_dir: RunDir) -> None:
    """A judge that likes the first response best."""
    rows = [json.loads(line) for line in (run_dir.path / "prompts.jsonl").read_text().splitlines()]
    (run_dir.path / "preview.json").write_text(json.dumps([_tried(row) for row in rows]))
    run_dir.log(step=len(rows), phase="preview", progress=1.0)
    run_dir.write_result({"num_comparisons": len(rows), "num_questions": 2 * len(rows), "seconds": 0.5})


def _tried(row: dict[str, Any]) -> dict[str, Any]:
    texts = [response["content"] for response in row["responses"]]
    told = {"reply": None, "failure": None, "is_truncated": False}
    questions = [
        {"responses": [place], "text": f"Rate this: {text}", "value": 9.0 - place, "probabilities": {"9": 0.75}, **told}
        for place, text in enumerate(texts)
    ]
    return {
        "id": row["id"],
        "seconds": 0.25,
        "scores": [9.0 - place for place in range(len(texts))],
        "questions": questions,
    }


def _until(condition) -> None:
    while not condition():
        time.sleep(0.02)


if __name__ == "__main__":
    main()
