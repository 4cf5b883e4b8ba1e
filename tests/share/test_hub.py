"""The Hub: the real client against a Hub on the loopback, with its faults."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hub_server
import huggingface_hub
import numpy as np
import pytest
from conftest import ROOT, files_of_at_most
from huggingface_hub import HfApi
from safetensors.numpy import load, save

from hfgpt.base.errors import InputError
from hfgpt.runs import metrics
from hfgpt.share import hub
from hfgpt.share.background import BackgroundPusher
from hfgpt.share.hub_errors import HubError
from hfgpt.train import origin

# huggingface_hub 2.4 passes an open file to httpx2 in a deprecated way.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>' to upload raw bytes:DeprecationWarning")

REPO = "ada/bard"
RECORD = '{"step": 0, "seconds": 1.23, "val_loss": 4.0}\n'
CONFIG = {"model_type": "gpt2", "n_layer": 1, "n_head": 1, "n_embd": 4, "n_positions": 8, "vocab_size": 5}
SHAPES = {
    "wte.weight": (5, 4), "wpe.weight": (8, 4), "ln_f.weight": (4,), "ln_f.bias": (4,),
    "h.0.ln_1.weight": (4,), "h.0.ln_1.bias": (4,), "h.0.ln_2.weight": (4,), "h.0.ln_2.bias": (4,),
    "h.0.attn.c_attn.weight": (4, 12), "h.0.attn.c_attn.bias": (12,),
    "h.0.attn.c_proj.weight": (4, 4), "h.0.attn.c_proj.bias": (4,),
    "h.0.mlp.c_fc.weight": (4, 16), "h.0.mlp.c_fc.bias": (16,),
    "h.0.mlp.c_proj.weight": (16, 4), "h.0.mlp.c_proj.bias": (4,),
}  # fmt: skip


def weights(value: float = 0.0) -> bytes:
    """Return a model.safetensors in which all numbers are the same."""
    tensors = {f"transformer.{name}": np.full(shape, value, np.float32) for name, shape in SHAPES.items()}
    return save({**tensors, "transformer.h.0.attn.bias": np.zeros(100_000, np.float32)})


MODEL_FILES: dict[str, str | bytes] = {
    "config.json": json.dumps(CONFIG),
    "generation_config.json": "{}",
    "model.safetensors": weights(),
    "tokenizer.json": "{}",
    "tokenizer_config.json": "{}",
    "metrics.jsonl": RECORD,
    "loss.png": "picture",
}


def write_run(folder: Path, **contents: str | bytes) -> Path:
    """Write the files of a run folder that the Hub needs; its model need not load."""
    for name, content in {**MODEL_FILES, **contents}.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_checkpoint(folder: Path, step: int, whole: bool = True) -> None:
    path = folder / f"checkpoint-{step}"
    path.mkdir(parents=True)
    for name in ("model.safetensors", "state.json", *(["COMPLETE"] if whole else [])):
        (path / name).write_text(f"{step} {name}", encoding="utf-8")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "out" / "bard")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[hub_server.Hub]:
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)  # neither the client nor hfgpt waits between attempts
    with hub_server.reached(monkeypatch) as server:
        yield server


def client(server: hub_server.Hub, token: str = hub_server.TOKEN) -> HfApi:
    return HfApi(endpoint=server.url, token=token)


def files(server: hub_server.Hub, revision: str = "main") -> dict[str, bytes]:
    held = server.repos[REPO].files(revision)
    assert held is not None
    return {path: blob.data for path, blob in held.items()}


# ---------------------------------------------------------------------------------------------- push


def test_a_push_holds_the_model_and_a_card(server: hub_server.Hub, run: Path) -> None:
    (run / "notes.txt").write_text("private", encoding="utf-8")
    (run / "logs").mkdir()
    (run / "logs" / "events").write_text("private", encoding="utf-8")
    write_checkpoint(run, 5)
    assert hub.push(run, REPO, api=client(server)) == f"{server.url}/{REPO}"
    held = files(server)
    assert held.keys() == {*MODEL_FILES, "README.md"}
    assert all(held[name] == (run / name).read_bytes() for name in held)
    assert not server.repos[REPO].private


def test_a_branch_is_not_pushed_over_its_trunk(server: hub_server.Hub, run: Path, tmp_path: Path) -> None:
    """Both have the same record up to the branch."""
    hub.push(run, REPO, api=client(server))
    held = files(server)
    branch = write_run(tmp_path / "branch")
    metrics.begin_branch(branch / "metrics.jsonl", 0, run / "metrics.jsonl")
    with pytest.raises(InputError, match="the name is taken: it holds another model"):
        hub.push(branch, REPO, api=client(server))
    assert files(server) == held


def test_a_push_is_one_commit(server: hub_server.Hub, run: Path) -> None:
    """Whenever it is killed, the Hub holds all of the previous push or all of this one: a run can resume from it."""
    write_checkpoint(run, 5)
    shutil.copytree(run / "checkpoint-5", run / "checkpoint-5.old")  # of a replacement that was interrupted
    hub.push(run, REPO, include_checkpoints=True, api=client(server))
    assert not [name for name in files(server) if ".old" in name]
    [(_, message, names)] = server.repos[REPO].log
    assert message == "Step 5"
    assert {"config.json", "README.md", "model.safetensors", "metrics.jsonl", "checkpoint-5/COMPLETE"} <= {*names}


def test_a_card_that_is_there_is_kept(server: hub_server.Hub, run: Path) -> None:
    (run / "README.md").write_text("my own words", encoding="utf-8")
    hub.push(run, REPO, api=client(server))
    assert files(server)["README.md"] == b"my own words"


def test_a_licence_that_is_typed_is_in_the_card(server: hub_server.Hub, run: Path) -> None:
    """Also in a card that is there already, with all else in it: each run has one."""
    hub.push(run, REPO, api=client(server))
    new = files(server)["README.md"]
    hub.push(run, REPO, license="apache-2.0", api=client(server))
    assert files(server)["README.md"] == new.replace(b"\n---\n", b"\nlicense: apache-2.0\n---\n", 1)
    for own, pushed in (
        ("my own words", "---\nlicense: mit\n---\nmy own words"),
        ("---\nlicense:\n- x\ntags: [a]\n---\n\n# ---", "---\nlicense: mit\ntags:\n- a\n---\n\n# ---"),
    ):
        write_run(run, **{"README.md": own})
        hub.push(run, REPO, license="mit", api=client(server))
        assert files(server)["README.md"].decode() == pushed
    for damaged in ("---\n[\n---\n", "---\n- a\n---\n"):
        write_run(run, **{"README.md": damaged})
        with pytest.raises(InputError, match=r"README\.md: its front matter is not a YAML mapping"):
            hub.push(run, REPO, license="mit", api=client(server))
        assert (run / "README.md").read_text(encoding="utf-8") == damaged


def test_a_name_alone_is_the_tokens_own_account(server: hub_server.Hub, run: Path) -> None:
    assert hub.push(run, "bard", private=True, api=client(server)).endswith(REPO)
    assert server.repos[REPO].private


def test_pushing_again_sends_only_what_changed(server: hub_server.Hub, run: Path) -> None:
    hub.push(run, REPO, api=client(server))
    uploads = server.asked("PUT", "/lfs/")
    write_run(run, **{"metrics.jsonl": RECORD + '{"step": 9}\n'})
    hub.push(run, REPO, api=client(server))
    assert server.asked("PUT", "/lfs/") == uploads
    assert server.repos[REPO].log[-1][2] == ["metrics.jsonl"]


def test_a_revision_is_a_branch_of_its_own(server: hub_server.Hub, run: Path) -> None:
    hub.push(run, REPO, api=client(server))
    write_run(run, **{"tokenizer.json": '{"new": 1}'})
    for _ in range(2):  # the second time the branch exists
        hub.push(run, REPO, revision="later", api=client(server))
    assert files(server)["tokenizer.json"] == b"{}"
    assert files(server, "later")["tokenizer.json"] == b'{"new": 1}'


def test_only_whole_checkpoints_travel_and_old_ones_go(server: hub_server.Hub, run: Path) -> None:
    write_checkpoint(run, 5)
    write_checkpoint(run, 10)
    write_checkpoint(run, 15, whole=False)
    hub.push(run, REPO, include_checkpoints=True, api=client(server))
    steps = {path.split("/")[0] for path in files(server) if path.startswith("checkpoint-")}
    assert steps == {"checkpoint-5", "checkpoint-10"}
    for path in (run / "checkpoint-5").iterdir():
        path.unlink()
    hub.push(run, REPO, api=client(server))  # not requested: unchanged
    assert "checkpoint-5/COMPLETE" in files(server)
    hub.push(run, REPO, include_checkpoints=True, api=client(server))
    assert {path.split("/")[0] for path in files(server) if "checkpoint" in path} == {"checkpoint-10"}


def test_a_run_that_lost_its_folder_is_told_to_go_on_from_the_hub(
    server: hub_server.Hub, run: Path, tmp_path: Path
) -> None:
    write_checkpoint(run, 5)
    hub.push(run, REPO, include_checkpoints=True, api=client(server))
    write_run(run, **{"metrics.jsonl": '{"step": 0, "seconds": 9}\n'})
    with pytest.raises(InputError, match=f"it holds another run(?s:.*)--resume=hf://{REPO}"):
        hub.push(run, REPO, include_checkpoints=True, api=client(server))


def test_steps_that_another_machine_made_are_not_overwritten(server: hub_server.Hub, run: Path, tmp_path: Path) -> None:
    """The run moved on elsewhere, and the first machine resumes its own older copy."""
    begun = RECORD + '{"step": 20, "seconds": 5, "val_loss": 3.0}\n'
    first = '{"step": 0, "recipe": {"max_iters": 20}}\n'

    def went_on(folder: Path, step: int, loss: float, length: int) -> Path:
        return write_run(folder, **{
            "metrics.jsonl": begun + f'{{"step": {step}, "seconds": 9, "val_loss": {loss}}}\n',
            "segments.jsonl": first + f'{{"step": 20, "recipe": {{"max_iters": {length}}}}}\n',
        })  # fmt: skip

    hub.push(write_run(run, **{"metrics.jsonl": begun, "segments.jsonl": first}), REPO, api=client(server))
    hub.push(went_on(tmp_path / "elsewhere", 30, 2.0, 30), REPO, api=client(server))
    with pytest.raises(InputError, match=f"up to step 30(?s:.*)--resume=hf://{REPO}"):
        hub.push(run, REPO, api=client(server))  # it would take the newer steps away
    with pytest.raises(InputError, match="up to step 30"):
        hub.push(went_on(run, 40, 1.5, 40), REPO, api=client(server))  # later, by another recipe
    assert b"2.0" in files(server)["metrics.jsonl"]
    hub.push(went_on(tmp_path / "elsewhere", 40, 1.9, 30), REPO, api=client(server))
    hub.push(run, REPO, overwrite=True, api=client(server))
    assert b"1.5" in files(server)["metrics.jsonl"]


def test_another_model_is_not_replaced_unasked(server: hub_server.Hub, run: Path, tmp_path: Path) -> None:
    hub.push(run, REPO, api=client(server))
    other = write_run(tmp_path / "other", **{"metrics.jsonl": '{"step": 0, "seconds": 4.56, "val_loss": 4.0}\n'})
    with pytest.raises(InputError, match="name is taken"):
        hub.push(other, REPO, api=client(server))
    assert files(server)["metrics.jsonl"] == RECORD.encode()
    hub.push(other, REPO, overwrite=True, api=client(server))
    assert b"4.56" in files(server)["metrics.jsonl"]


def test_no_path_of_this_machine_is_pushed(server: hub_server.Hub, run: Path, tmp_path: Path) -> None:
    secret = f"dataset: {tmp_path}/lovelace/poems.txt  # mine\nn_layer: 1\nn_head: 1\nn_embd: 4\nout_dir: {run}\n"
    old_card = f"Trained on {tmp_path}/lovelace/poems.txt into {run}"
    write_run(run, **{"recipe.yaml": secret, "README.md": old_card})
    hub.push(run, REPO, api=client(server))
    held = files(server)
    assert all(str(tmp_path).encode() not in content for content in held.values())
    assert all(b"lovelace" not in content for content in held.values())
    assert b"dataset: poems.txt" in held["recipe.yaml"]
    assert (run / "recipe.yaml").read_text(encoding="utf-8") == secret, "the folder's own recipe stays as it is"
    assert held["README.md"] == b"Trained on poems.txt into bard"


def test_links_are_not_followed(server: hub_server.Hub, run: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret", encoding="utf-8")
    (run / "portrait.png").symlink_to(tmp_path / "secret")
    (run / "samples.jsonl").symlink_to(tmp_path / "secret")
    write_checkpoint(tmp_path / "elsewhere", 7)
    (run / "checkpoint-7").symlink_to(tmp_path / "elsewhere" / "checkpoint-7")
    write_checkpoint(run, 5)
    (run / "checkpoint-5" / "extra.json").symlink_to(tmp_path / "secret")
    hub.push(run, REPO, include_checkpoints=True, api=client(server))
    held = files(server)
    assert not any(b"secret" in content for content in held.values())
    assert {name.split("/")[0] for name in held if "/" in name} == {"checkpoint-5"}
    (run / "README.md").unlink()
    (run / "README.md").symlink_to(tmp_path / "secret")
    with pytest.raises(InputError, match="is a link"):
        hub.push(run, REPO, api=client(server))


def test_a_folder_is_pushed_by_one_at_a_time(server: hub_server.Hub, run: Path) -> None:
    gate, begun, slow = threading.Event(), threading.Event(), client(server)
    create = slow.create_repo
    slow.create_repo = lambda *a, **k: (begun.set(), gate.wait(30), create(*a, **k))[2]  # type: ignore[method-assign]
    first = threading.Thread(target=lambda: hub.push(run, REPO, api=slow))
    first.start()
    assert begun.wait(30)
    with pytest.raises(InputError, match="in use by"):
        hub.push(run, REPO, api=client(server))
    assert REPO not in server.repos
    gate.set()
    first.join()
    assert files(server).keys() >= MODEL_FILES.keys()
    hub.push(run, REPO, api=client(server))
    assert not (run / ".push").exists()


def test_a_newer_checkpoint_of_another_machine_stays(server: hub_server.Hub, run: Path) -> None:
    write_checkpoint(run, 5)
    newer = {f"checkpoint-9/{name}": hub_server.Blob(b"", False) for name in ("state.json", "COMPLETE")}
    hub.push(run, REPO, include_checkpoints=True, api=client(server))
    server.repos[REPO].commit("main", "the other machine", newer, [])
    hub.push(run, REPO, include_checkpoints=True, api=client(server))
    assert "checkpoint-9/COMPLETE" in files(server)


@pytest.mark.parametrize("checkpoints", [True, False])
def test_another_runs_checkpoints_do_not_stay_beside_the_run_that_replaces_it(
    server: hub_server.Hub, run: Path, tmp_path: Path, checkpoints: bool
) -> None:
    """Otherwise a resume from the Hub continues the old run, from its checkpoint with the new run's record."""
    for step in (5, 9):
        write_checkpoint(run, step)
    write_run(run, **{"checkpoint-5/rng-2.json": "{}"})
    hub.push(run, REPO, include_checkpoints=True, api=client(server))
    other = write_run(tmp_path / "other", **{"metrics.jsonl": '{"step": 0, "seconds": 4.56, "val_loss": 4.0}\n'})
    write_checkpoint(other, 5)
    hub.push(other, REPO, include_checkpoints=checkpoints, overwrite=True, api=client(server))
    own = {f"checkpoint-5/{path.name}" for path in (other / "checkpoint-5").iterdir()}
    assert {name for name in files(server) if "/" in name} == (own if checkpoints else set())
    assert b"4.56" in files(server)["metrics.jsonl"]


def test_a_runs_own_checkpoints_stay_when_it_is_pushed_over_itself(server: hub_server.Hub, run: Path) -> None:
    """As from a folder that was pulled without them."""
    write_checkpoint(run, 5)
    hub.push(run, REPO, include_checkpoints=True, api=client(server))
    before = {name for name in files(server) if "/" in name}
    assert before
    hub.push(run, REPO, overwrite=True, api=client(server))
    assert {name for name in files(server) if "/" in name} == before


# ---------------------------------------------------------------------------------------------- faults


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/repos/create"),
        ("POST", "/preupload/"),
        ("POST", "/commit/"),
        ("GET", f"/api/models/{REPO}"),
    ],
)
@pytest.mark.parametrize("status", [503, 429, 412])
def test_a_busy_hub_is_asked_again(server: hub_server.Hub, run: Path, method: str, path: str, status: int) -> None:
    server.fault(method, path, status, times=2)
    hub.push(run, REPO, api=client(server))
    assert files(server).keys() >= MODEL_FILES.keys()


def test_an_upload_that_is_cut_goes_on(server: hub_server.Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = save({**load(weights()), "transformer.h.0.attn.masked_bias": np.ones(750_000, np.float32)})
    write_run(run, **{"model.safetensors": large})
    server.fault("PUT", "/lfs/", None, times=2)
    hub.push(run, REPO, api=client(server))
    assert files(server)["model.safetensors"] == large


def test_a_push_that_failed_goes_on_where_it_was(server: hub_server.Hub, run: Path) -> None:
    server.fault("POST", "/commit/", 500, times=4)
    with pytest.raises(HubError, match="try again"):
        hub.push(run, REPO, api=client(server))
    assert "config.json" not in files(server)
    uploads = server.asked("PUT", "/lfs/")
    assert uploads == 2  # weights and picture are already uploaded
    hub.push(run, REPO, api=client(server))
    assert server.asked("PUT", "/lfs/") == uploads
    assert files(server).keys() >= MODEL_FILES.keys()


@pytest.mark.parametrize(
    ("token", "repo", "error", "message"),
    [
        (hub_server.READ_ONLY, REPO, InputError, "no right to write"),
        (hub_server.TOKEN, "bob/bard", InputError, "no right to write"),
        ("hf_mistyped", REPO, InputError, "does not know this token"),
        (hub_server.TOKEN, "a/b/c", InputError, "not a name for a repository"),
        (hub_server.TOKEN, "ada/b d", InputError, "not a name for a repository"),
    ],
)
def test_each_refusal_has_its_message(
    server: hub_server.Hub, run: Path, token: str, repo: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        hub.push(run, repo, api=client(server, token))
    assert not server.repos


def test_no_token_no_network_and_offline(
    server: hub_server.Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match="needs a token"):
        hub.push(run, REPO, api=HfApi(endpoint=server.url))
    nowhere = HfApi(endpoint="http://127.0.0.1:9", token="x")
    with pytest.raises(HubError, match=r"127\.0\.0\.1:9 cannot be reached"):
        hub.push(run, REPO, api=nowhere)
    with pytest.raises(HubError, match="cannot be reached"):
        hub.pull(REPO, tmp_path / "pulled", api=nowhere)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    huggingface_hub.close_session()
    with pytest.raises(InputError, match="HF_HUB_OFFLINE"):
        hub.push(run, REPO, api=client(server))


def test_a_folder_without_a_model_asks_nothing_of_the_hub(server: hub_server.Hub, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        hub.push(tmp_path / "none", REPO, api=client(server))
    assert not server.requests


# ---------------------------------------------------------------------------------------------- pull


def test_a_pull_is_what_was_pushed(server: hub_server.Hub, run: Path, tmp_path: Path) -> None:
    write_checkpoint(run, 5)
    hub.push(run, REPO, include_checkpoints=True, api=client(server))
    pulled = hub.pull(REPO, tmp_path / "pulled", api=client(server))
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    assert {str(path.relative_to(pulled)) for path in pulled.rglob("*") if path.is_file()} == names
    assert all((pulled / name).read_bytes() == (run / name).read_bytes() for name in names)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_a_pull_takes_no_pickles(server: hub_server.Hub, run: Path, tmp_path: Path) -> None:
    hub.push(run, REPO, api=client(server))
    evil = {
        "pytorch_model.bin": hub_server.Blob(b"code", False),
        "checkpoint-1/scheduler.pt": hub_server.Blob(b"", False),
    }
    server.repos[REPO].commit("main", "others", evil, [])
    pulled = hub.pull(REPO, tmp_path / "pulled", api=client(server))
    assert {path.name for path in pulled.iterdir()} == {*MODEL_FILES, "README.md"}


def test_a_revision_is_pulled(server: hub_server.Hub, run: Path, tmp_path: Path) -> None:
    hub.push(run, REPO, api=client(server))
    write_run(run, **{"tokenizer.json": '{"new": 1}'})
    hub.push(run, REPO, revision="later", api=client(server))
    assert (hub.pull(REPO, tmp_path / "a", api=client(server)) / "tokenizer.json").read_text() == "{}"
    later = hub.pull(REPO, tmp_path / "b", revision="later", api=client(server))
    assert (later / "tokenizer.json").read_text() == '{"new": 1}'
    commit = server.repos[REPO].branches["main"]
    assert hub.pull(REPO, tmp_path / "c", revision=commit, api=client(server)).is_dir()


def test_a_pull_that_failed_leaves_no_folder_and_goes_on(server: hub_server.Hub, run: Path, tmp_path: Path) -> None:
    hub.push(run, REPO, api=client(server))
    server.fault("GET", "/resolve/.*model.safetensors", 500, times=100)
    with pytest.raises(HubError):
        hub.pull(REPO, tmp_path / "pulled", api=client(server))
    assert not (tmp_path / "pulled").exists()
    server._faults.clear()
    before = server.asked("GET", "/resolve/.*tokenizer_config.json")
    assert hub.pull(REPO, tmp_path / "pulled", api=client(server)).is_dir()
    assert server.asked("GET", "/resolve/.*tokenizer_config.json") == before == 1


@pytest.mark.parametrize("size", [0, 50, 3000])
def test_a_pull_onto_a_full_disk_is_one_message_and_goes_on(
    server: hub_server.Hub, run: Path, tmp_path: Path, size: int
) -> None:
    hub.push(run, REPO, api=client(server))
    target = tmp_path / "pulled"
    with files_of_at_most(size), pytest.raises(InputError, match=r"pulled.*: cannot be .*: File too large"):
        hub.pull(REPO, target, api=client(server))
    assert not target.exists()
    hub.pull(REPO, target, api=client(server))
    assert (target / "model.safetensors").read_bytes() == MODEL_FILES["model.safetensors"]


def test_what_cannot_be_pulled_is_one_message(server: hub_server.Hub, run: Path, tmp_path: Path) -> None:
    hub.push(run, REPO, private=True, api=client(server))
    client(server).create_repo("ada/empty")
    with pytest.raises(InputError, match="no such repository"):
        hub.pull("ada/none", tmp_path / "pulled", api=client(server))
    with pytest.raises(InputError, match="no such repository"):
        hub.pull(REPO, tmp_path / "pulled", api=HfApi(endpoint=server.url, token=False))
    with pytest.raises(InputError, match=r"ada/.*: has no revision 'none'"):
        hub.pull(REPO, tmp_path / "pulled", revision="none", api=client(server))
    with pytest.raises(InputError, match="not a model that hfgpt reads"):
        hub.pull("ada/empty", tmp_path / "pulled", api=client(server))
    with pytest.raises(InputError, match="in use"):
        hub.pull(REPO, run, api=client(server))
    assert not (tmp_path / "pulled").exists()


def test_a_pull_into_the_folder_where_one_is(
    server: hub_server.Hub, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.push(run, REPO, api=client(server))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert hub.pull(REPO, ".", api=client(server)) == tmp_path / "here"
    assert {path.name for path in Path().iterdir()} == {*MODEL_FILES, "README.md"}
    assert Path("config.json").is_file(), "the folder is still this one"
    with pytest.raises(InputError, match="in use"):
        hub.pull(REPO, ".", api=client(server))
    for odd in ("../up", "deep/er"):
        assert (hub.pull(REPO, odd, api=client(server)) / "config.json").is_file()
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(InputError, match="cannot be read or written"):
        hub.pull(REPO, tmp_path / "file" / "x", api=client(server))
    for revision in ("../../x", "a" * 300):
        with pytest.raises(InputError, match=f"has no revision {re.escape(repr(revision))}"):
            hub.pull(REPO, "new", revision=revision, api=client(server))


def test_a_folder_is_brought_as_far_as_the_hub_is(server: hub_server.Hub, run: Path, tmp_path: Path) -> None:
    for step in (5, 10):
        write_checkpoint(run, step)
    hub.push(run, REPO, include_checkpoints=True, api=client(server))
    there = tmp_path / "there"
    origin.bring(origin.HubRun(REPO), there, api=client(server))
    assert [path.name for path in sorted(there.glob("checkpoint-*"))] == ["checkpoint-10"], "the newest alone"
    write_checkpoint(run, 15)
    write_run(run, **{"metrics.jsonl": RECORD + '{"step": 15}\n'})
    hub.push(run, REPO, include_checkpoints=True, api=client(server))
    origin.bring(origin.HubRun(REPO, "main"), there, api=client(server))
    assert (there / "checkpoint-15" / "COMPLETE").is_file()
    assert '"step": 15' in (there / "metrics.jsonl").read_text(encoding="utf-8")
    write_checkpoint(there, 20)
    write_run(there, **{"metrics.jsonl": RECORD + '{"step": 20}\n'})
    origin.bring(origin.HubRun(REPO), there, api=client(server))
    assert '"step": 20' in (there / "metrics.jsonl").read_text(encoding="utf-8"), "it was further"
    write_run(there, **{"metrics.jsonl": '{"step": 0, "seconds": 9}\n'})
    with pytest.raises(InputError, match="holds another run"):
        origin.bring(origin.HubRun(REPO), there, api=client(server))
    assert not [path for path in there.iterdir() if path.name.startswith(".")]


# ---------------------------------------------------------------------------------------------- background


def test_checkpoints_follow_in_the_background_and_old_ones_go(server: hub_server.Hub, run: Path) -> None:
    warnings = list[str]()
    pusher = BackgroundPusher(run, REPO, checkpoints=True, warn=warnings.append, api=client(server))
    pusher.submit()
    assert not list(run.glob(".pushing-*")), "a run without a checkpoint may have to begin anew"
    for step in (5, 10, 15):
        write_checkpoint(run, step)
        if step > 10:
            shutil.rmtree(run / f"checkpoint-{step - 10}")
        pusher.submit()
    assert pusher.close(timeout=60)
    assert not warnings
    assert {name.split("/")[0] for name in files(server) if "/" in name} == {"checkpoint-10", "checkpoint-15"}
    for commit in server.repos[REPO].commits.values():
        for folder in {name.split("/")[0] for name in commit if "/" in name}:
            assert {f"{folder}/{name}" for name in ("COMPLETE", "model.safetensors", "state.json")} <= commit.keys()


@pytest.mark.parametrize("checkpoints", [True, False])
def test_nothing_is_pushed_before_the_first_checkpoint(server: hub_server.Hub, run: Path, checkpoints: bool) -> None:
    """A run killed before it begins anew, with another record, and would find its name taken."""
    warnings = list[str]()
    pusher = BackgroundPusher(run, REPO, checkpoints=checkpoints, warn=warnings.append, api=client(server))
    pusher.submit()
    assert pusher.close(timeout=60)
    assert REPO not in server.repos
    assert pusher.held_back
    write_run(run, **{"metrics.jsonl": '{"step": 0, "seconds": 9}\n'})
    write_checkpoint(run, 5)
    pusher = BackgroundPusher(run, REPO, checkpoints=checkpoints, warn=warnings.append, api=client(server))
    pusher.submit()
    assert not pusher.held_back
    assert pusher.close(timeout=60)
    assert not warnings
    assert ("checkpoint-5/COMPLETE" in files(server)) == checkpoints
    assert b"9" in files(server)["metrics.jsonl"]


def test_pushing_in_the_background_waits_for_nothing_and_pushes_the_newest(server: hub_server.Hub, run: Path) -> None:
    gate, warnings = threading.Event(), list[str]()
    api = client(server)
    write_checkpoint(run, 5)
    create, begun = api.create_repo, threading.Event()
    api.create_repo = lambda *a, **k: (begun.set(), gate.wait(30), create(*a, **k))[2]  # type: ignore[method-assign]
    pusher = BackgroundPusher(run, REPO, warn=warnings.append, api=api)
    for number in range(5):  # the first is held at the gate; of the others, only the last one waits
        replaced = run / "new.safetensors"
        replaced.write_bytes(weights(number))
        replaced.replace(run / "model.safetensors")
        with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(f'{{"step": {number + 1}}}\n')
        pusher.submit()
        assert begun.wait(30)
    (run / "model.safetensors").unlink()  # a submitted file must not change
    gate.set()
    assert pusher.close(timeout=60)
    pushed = [
        commit["model.safetensors"].data
        for commit in server.repos[REPO].commits.values()
        if "model.safetensors" in commit
    ]
    assert list(dict.fromkeys(pushed)) == [weights(0), weights(4)]
    assert files(server)["metrics.jsonl"].endswith(b'{"step": 5}\n')
    assert not warnings
    assert not list(run.glob(".pushing-*"))


def test_failures_in_the_background_are_one_warning(server: hub_server.Hub, run: Path) -> None:
    warnings = list[str]()
    write_checkpoint(run, 5)
    pusher = BackgroundPusher(run, "bob/bard", warn=warnings.append, api=client(server))
    for _ in range(3):
        pusher.submit()
    assert pusher.close(timeout=60)
    assert len(warnings) == 1
    assert "and continues" in warnings[0]
    assert "no right to write" in warnings[0]


def test_a_snapshot_that_fails_leaves_nothing_behind(server: hub_server.Hub, run: Path, tmp_path: Path) -> None:
    """On a full disk its links would keep deleted checkpoints there; and no failure ends the run."""
    warnings = list[str]()
    write_checkpoint(run, 5)
    pusher = BackgroundPusher(run, REPO, checkpoints=True, warn=warnings.append, api=client(server))
    with files_of_at_most(10):
        pusher.submit()
    assert not list(run.glob(".pushing-*"))
    assert "File too large" in warnings.pop()
    pusher.submit()
    assert pusher.close(timeout=60)
    assert "checkpoint-5/COMPLETE" in files(server)
    assert pusher.problem is None

    (run / "config.json").rename(tmp_path / "config.json")
    (run / "config.json").symlink_to(tmp_path / "config.json")
    pusher = BackgroundPusher(run, REPO, warn=warnings.append, api=client(server))
    pusher.submit()
    assert pusher.close(timeout=60)
    assert "is a link, and links are not pushed" in warnings.pop()
    assert not list(run.glob(".pushing-*"))


def test_a_token_that_the_hub_does_not_know_is_heard_of_before_the_first_push(
    server: hub_server.Hub, run: Path
) -> None:
    warnings = list[str]()
    pusher = BackgroundPusher(run, REPO, warn=warnings.append, api=client(server, "mistyped"))
    assert pusher.close(timeout=60)
    assert len(warnings) == 1
    assert "and continues: the Hub does not know this token" in warnings[0]
    assert pusher.problem is not None


def test_a_push_that_failed_is_tried_again(server: hub_server.Hub, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is retried after a while, and once more at the end; then no fault remains."""
    monkeypatch.setattr("hfgpt.share.background.RETRY", 0.05)
    monkeypatch.setattr("hfgpt.share.hub_errors.WAITS", ())
    warnings = list[str]()
    write_checkpoint(run, 5)
    server.fault("POST", "/commit/", 500, times=3)
    pusher = BackgroundPusher(run, REPO, checkpoints=True, warn=warnings.append, api=client(server))
    pusher.submit()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.asked("POST", "/commit/") < 4:
        time.sleep(0.02)
    assert pusher.close(timeout=60)
    assert pusher.problem is None
    assert "checkpoint-5/COMPLETE" in files(server)
    assert server.asked("POST", "/commit/") == 4
    assert len(warnings) == 1

    monkeypatch.setattr("hfgpt.share.background.RETRY", 600.0)
    write_checkpoint(run, 10)
    pusher = BackgroundPusher(run, REPO, checkpoints=True, warn=warnings.append, api=client(server))
    server.fault("POST", "/commit/", 500, times=1)
    pusher.submit()
    while len(warnings) < 2:
        time.sleep(0.02)
    assert pusher.close(timeout=60), "at once: the end does not wait for the next try"
    assert "checkpoint-10/COMPLETE" in files(server)
    assert pusher.problem is None
    assert not list(run.glob(".pushing-*"))


def test_closing_does_not_wait_for_ever(server: hub_server.Hub, run: Path) -> None:
    gate = threading.Event()
    api = client(server)
    write_checkpoint(run, 5)
    api.create_repo = lambda *_a, **_k: gate.wait(60)  # type: ignore[method-assign]
    pusher = BackgroundPusher(run, REPO, warn=lambda _text: None, api=api)
    pusher.submit()
    assert not pusher.close(timeout=0.1)
    gate.set()


def test_importing_it_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, hfgpt.share.hub; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# ---------------------------------------------------------------------------------------------- the scripts


@pytest.mark.e2e
def test_the_scripts_and_the_hubs_own_tools(server: hub_server.Hub, run: Path, tmp_path: Path, run_script: Any) -> None:
    env = {
        "HF_ENDPOINT": server.url,
        "HF_TOKEN": hub_server.TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    done = run_script("push.py", run, REPO, "--private", env=env)
    assert done.returncode == 0, done.stderr
    assert REPO in done.stdout
    assert server.repos[REPO].private
    done = run_script("push.py", run, REPO, env=env)
    assert (done.returncode, done.stderr) == (0, ""), "the client's 'No files have been modified' is not for users"
    done = run_script("pull.py", REPO, "pulled", env=env)
    assert done.returncode == 0, done.stderr
    assert len(done.stderr.splitlines()) == 1, "Reading …, and no progress bars"
    assert re.search(r"sample\.py \S*/pulled", done.stdout)
    tool = Path(sys.executable).with_name("hf")
    subprocess.run([tool, "download", REPO, "--local-dir", tmp_path / "hf"], env={**os.environ, **env}, check=True)
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == (run / "model.safetensors").read_bytes()
    for broken, code, message in (
        ({"HF_TOKEN": ""}, 2, "needs a token"),
        ({"HF_TOKEN": hub_server.READ_ONLY}, 2, "the name is taken, and this token may not write"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, 1, "cannot be reached"),
    ):
        done = run_script("push.py", run, REPO, env={**env, **broken})
        assert done.returncode == code
        assert message in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.e2e
def test_a_pushed_model_loads_by_its_name(server: hub_server.Hub, tmp_path: Path) -> None:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    from hfgpt.data import tokenizer
    from hfgpt.share import export

    made = tokenizer.train_char(["a bad cab"])
    shape = {"n_positions": 8, "n_embd": 8, "n_layer": 1, "n_head": 1}
    gpt2 = GPT2LMHeadModel(GPT2Config(vocab_size=len(made), bos_token_id=None, eos_token_id=None, **shape)).eval()
    (tmp_path / "run").mkdir()
    export.write(tmp_path / "run", gpt2, made, export.weights(gpt2.state_dict()))
    hub.push(tmp_path / "run", REPO, api=client(server))
    code = (
        "import sys, torch; from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        f"model, made = (kind.from_pretrained({REPO!r}) for kind in (AutoModelForCausalLM, AutoTokenizer))\n"
        "print(made.encode('bad'), float(model(torch.arange(8)[None]).logits.detach().double().sum()))"
    )
    env = {**os.environ, "HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        total = float(gpt2(torch.arange(8)[None]).logits.double().sum())
    assert done.stdout == f"{made.encode('bad')} {total}\n"


@pytest.mark.e2e
def test_another_machine_resumes_what_was_pushed(
    server: hub_server.Hub, tiny: dict[str, Any], tmp_path: Path, write_recipe: Any, run_script: Any
) -> None:
    """Bit for bit: steps 5 to 8 from the pulled checkpoint are those of the uninterrupted run."""
    whole = tmp_path / "run"
    done = run_script("train.py", write_recipe({**tiny, "dropout": 0.1}))
    assert done.returncode == 0, done.stderr
    halfway = tmp_path / "halfway"
    shutil.copytree(whole, halfway)
    shutil.rmtree(halfway / "checkpoint-8")
    hub.push(halfway, REPO, include_checkpoints=True, api=client(server))
    for name, content in files(server).items():  # the script, the text and the folder were named by absolute paths
        assert not [path for path in (ROOT, tmp_path, Path(tiny["dataset"]).parent) if bytes(path) in content], name
    pulled = hub.pull(REPO, tmp_path / "pulled", api=client(server))
    # A pushed run contains no path of this machine, so the text must be given again.
    done = run_script("train.py", pulled, "--resume", f"--dataset={tiny['dataset']}")
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "optimizer.safetensors"):
        assert (pulled / "checkpoint-8" / name).read_bytes() == (whole / "checkpoint-8" / name).read_bytes()
