"""Which checkpoints are kept and found; every file of one, damaged in turn: nothing wrong is read in silence."""

import collections
import contextlib
import functools
import json
import re
import shutil
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fakes import evaluated

import hybrid_jax
from hybrid_jax import config as config_lib
from hybrid_jax import train_state
from hybrid_jax.errors import UserError
from hybrid_jax.storage import best as best_checkpoint
from hybrid_jax.storage import checkpoint
from hybrid_jax.storage.checkpoint import Checkpoints
from hybrid_jax.train_state import TrainState


def flip(place):
    def damage(file):
        content = bytearray(file.read_bytes())
        content[{"first": 0, "middle": len(content) // 2, "last": -1}[place]] ^= 1
        file.write_bytes(content)

    return damage


DAMAGE = {
    "first byte flipped": flip("first"),
    "middle byte flipped": flip("middle"),
    "last byte flipped": flip("last"),
    "cut in half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "emptied": lambda file: file.write_bytes(b""),
    "deleted": lambda file: file.unlink(),
}


def make_state(value: float) -> TrainState:
    """A state with all parts; one array has a file of its own, one is so small that it lies among the names."""
    kernel = np.random.default_rng(int(value)).normal(size=(32, 16)).astype(np.float32)
    tree = {"kernel": jnp.asarray(kernel), "bias": jnp.full(3, value)}
    count = jnp.asarray(int(value), jnp.int32)
    return TrainState(count, tree, jax.tree.map(jnp.negative, tree), (count, tree), None)


@pytest.fixture
def saved(tiny_config, tmp_path):
    """A workdir with checkpoints 1 and 2."""
    checkpoints = Checkpoints(tmp_path, tiny_config())
    for value in (1, 2):
        checkpoints.save(make_state(value), tiny_config(), "the data's")
    checkpoints.close()
    return tmp_path


def restore(workdir, config):
    """Returns (state, step, lines of the log) of what the newest good checkpoint gives."""
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), make_state(0))
    lines: list[str] = []
    with contextlib.closing(Checkpoints(workdir, config)) as checkpoints:
        state, meta = checkpoints.restore_latest(target, lambda meta: None, lines.append)
    return state, meta["step"], lines


def outcome(workdir, config) -> str:
    """Restores, asserts that nothing is wrong in silence, and returns what happened in a word or two."""
    state, step, lines = restore(workdir, config)
    jax.tree.map(np.testing.assert_array_equal, state, make_state(step))
    aside = [p.name for p in (workdir / "checkpoints").glob("damaged-*")]
    if step == 2:
        assert not lines and not aside
        return "harmless"
    assert step == 1 and aside == ["damaged-2-0"]
    assert len(lines) == 1 and re.match(r"checkpoint 2 is damaged \(.+\)$", lines[0]), lines
    return "damaged"


def kind(path) -> str:
    return re.sub(r"[0-9a-f]{32}", "<data>", path.as_posix()).replace("params", "<part>")


def put_back(workdir):
    with contextlib.suppress(FileNotFoundError):
        (workdir / "checkpoints" / "damaged-2-0").rename(workdir / "checkpoints" / "2")


def damage_in_turn(workdir, config, chosen):
    """Returns {(kind of file, what was done): how often which outcome}."""
    newest = workdir / "checkpoints" / "2"
    table = collections.defaultdict(collections.Counter)
    for file in sorted(p for p in newest.rglob("*") if p.is_file()):
        content = file.read_bytes()
        for name, damage in DAMAGE.items():
            if chosen(file.relative_to(newest), name) and (content or name == "deleted"):
                damage(file)
                table[kind(file.relative_to(newest)), name][outcome(workdir, config)] += 1
                put_back(workdir)
                file.write_bytes(content)
    print_table(table)
    return table


def assert_all_that_counts_is_noticed(table):
    for (where, name), outcomes in table.items():
        if where in ("meta/metadata", "<part>/manifest.ocdbt"):
            assert set(outcomes) == {"damaged"}
        # One of these holds an array; the others were copied into <part>/d.
        if where == "<part>/ocdbt.process_0/d/<data>" and name != "last byte flipped":
            assert outcomes["damaged"] > 0


def test_files_of_a_checkpoint_damaged_in_turn(saved, tiny_config):
    # The other parts are stored as the parameters are.
    chosen = lambda file, name: (
        file.parts[0] not in ("ema_params", "opt_state")
        or (file.parts[1] == "ocdbt.process_0" and name == "middle byte flipped")
    )
    assert_all_that_counts_is_noticed(damage_in_turn(saved, tiny_config(), chosen))


@pytest.mark.slow
def test_every_file_of_a_checkpoint_damaged_in_every_way(saved, tiny_config):
    assert_all_that_counts_is_noticed(damage_in_turn(saved, tiny_config(), lambda file, name: True))


def print_table(table):
    print()
    for (where, name), outcomes in sorted(table.items()):
        print(f"{where:45} {name:20} " + ", ".join(f"{word} {count}" for word, count in sorted(outcomes.items())))


def edited(**changes):
    def edit(step):
        path = step / "meta" / "metadata"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return edit


def without(key):
    def edit(step):
        path = step / "meta" / "metadata"
        path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != key}))

    return edit


def replaced(old, new):
    def edit(step):
        path = step / "meta" / "metadata"
        assert path.read_text().count(old) == 1
        path.write_text(path.read_text().replace(old, new))

    return edit


def saved_anew(change):
    """Saves a changed state in the place of the parameters, as whole as ever but for our checksums."""

    def edit(step):
        config = json.loads((step / "meta" / "metadata").read_text())["config"]
        config = config_lib.from_dict(config)
        other = step.parent.parent / "other"
        with contextlib.closing(Checkpoints(other, config)) as checkpoints:
            state = make_state(2)
            checkpoints.save(state.replace(params=change(state.params)), config, "the data's")
        shutil.rmtree(step / "params")
        shutil.move(other / "checkpoints" / "2" / "params", step / "params")
        shutil.rmtree(other)

    return edit


def emptied(step):
    shutil.rmtree(step)
    step.mkdir()


def replaced_by_the_one_before(part):
    def edit(step):
        shutil.rmtree(step / part)
        shutil.copytree(step.parent / "1" / part, step / part)

    return edit


STRANGE = {
    "an empty directory": emptied,
    "meta is a list": lambda step: (step / "meta" / "metadata").write_text("[1, 2]"),
    "meta is a number": lambda step: (step / "meta" / "metadata").write_text("1"),
    "meta is empty": lambda step: (step / "meta" / "metadata").write_text("{}"),
    "meta nested without end": lambda step: (step / "meta" / "metadata").write_text("[" * 100_000),
    "meta of another step": replaced_by_the_one_before("meta"),
    "parameters of another step": replaced_by_the_one_before("params"),
    "no meta": lambda step: shutil.rmtree(step / "meta"),
    "no parameters": lambda step: shutil.rmtree(step / "params"),
    "a changed step": edited(step=3),
    "a changed format": edited(format_version=7),
    "a changed fingerprint": edited(fingerprint="other"),
    "a changed seed": edited(seed=1),
    "a changed config value": replaced('"width": 16', '"width": 17'),
    "a changed key": replaced('"fingerprint"', '"fingerprinu"'),
    "its checksum's key changed": replaced('"checksum"', '"checksun"'),
    "no checksums": without("checksums"),
    "no step": without("step"),
    "NaN in the parameters": saved_anew(lambda tree: tree | {"bias": jnp.full(3, jnp.nan)}),
    "another shape": saved_anew(lambda tree: tree | {"bias": jnp.full(4, 2.0)}),
    "another dtype": saved_anew(lambda tree: tree | {"kernel": tree["kernel"].astype(jnp.bfloat16)}),
    "an array less": saved_anew(lambda tree: {"kernel": tree["kernel"]}),
}


def test_what_is_whole_to_orbax_but_not_what_was_saved_is_damaged(saved, tiny_config):
    outcomes = {}
    for name, damage in STRANGE.items():
        shutil.copytree(saved / "checkpoints", saved / "whole")
        damage(saved / "checkpoints" / "2")
        outcomes[name] = outcome(saved, tiny_config())
        shutil.rmtree(saved / "checkpoints")
        (saved / "whole").rename(saved / "checkpoints")
    print("\n" + "\n".join(f"{name:35} {word}" for name, word in outcomes.items()))
    assert set(outcomes.values()) == {"damaged"}


def test_a_checkpoint_from_before_meta_had_a_checksum_is_read(saved, tiny_config):
    without("checksum")(saved / "checkpoints" / "2")
    assert outcome(saved, tiny_config()) == "harmless"


def test_another_format_is_refused_and_not_called_damage(saved, tiny_config, monkeypatch):
    monkeypatch.setattr("hybrid_jax.storage.checkpoint.FORMAT_VERSION", 2)
    with pytest.raises(UserError, match="format 1; must be 2"):
        restore(saved, tiny_config())


def test_damaged_ones_stay_where_they_are_until_an_older_one_is_restored(saved, tiny_config):
    for step in ("1", "2"):
        emptied(saved / "checkpoints" / step)
    for _ in range(2):
        with pytest.raises(UserError, match=r"every checkpoint in .* is damaged"):
            restore(saved, tiny_config())
        assert sorted(p.name for p in (saved / "checkpoints").iterdir()) == ["1", "2"]


def test_loading_takes_the_one_before_too_and_a_named_step_is_refused(tiny_config, tmp_path, mesh_of):
    config, mesh = tiny_config(), mesh_of(1)
    state = train_state.init_state(config, mesh, None)
    damages = {
        "a flipped config value": replaced('"width": 16', '"width": 17'),
        "a flipped array": lambda step: [
            flip("middle")(p) for p in (step / "params" / "ocdbt.process_0" / "d").iterdir()
        ],
        "an empty directory": emptied,
    }
    for name, damage in damages.items():
        workdir = tmp_path / name
        with contextlib.closing(Checkpoints(workdir, config)) as checkpoints:
            for step in (1, 2):
                checkpoints.save(state.replace(step=jnp.asarray(step)), config, "the data's")
        damage(workdir / "checkpoints" / "2")
        lines: list[str] = []
        assert hybrid_jax.load(workdir, log=lines.append).step == 1
        assert len(lines) == 1 and lines[0].startswith("checkpoint 2 is damaged")
        with pytest.raises(UserError, match="no undamaged checkpoint among 2"):
            hybrid_jax.load(workdir, 2, log=lines.append)
        # Reading sets nothing aside.
        assert sorted(p.name for p in (workdir / "checkpoints").iterdir()) == ["1", "2"]


def test_last_n_every_mth_and_the_best_are_kept_and_a_resumed_run_keeps_them_too(tiny_config, tmp_path):
    config = tiny_config(checkpoint__keep_every=5, checkpoint__best_metric="knn_accuracy")
    scores = {2: 0.1, 3: 0.9, 6: 0.9, 8: 0.2, 9: 0.95}
    kept = {}
    for first in (1, 5, 8):
        best_step = functools.partial(best_checkpoint.best_step, tmp_path, "knn_accuracy")
        with contextlib.closing(Checkpoints(tmp_path, config, best_step=best_step)) as checkpoints:
            for step in range(first, {1: 5, 5: 8, 8: 12}[first]):
                state = SimpleNamespace(step=np.int32(step), saved=lambda: {"params": {"w": jnp.zeros(3)}})
                checkpoints.save(state, config, "data")
                checkpoints.wait()
                kept[step] = checkpoints.steps()
                # As in training: what was saved is evaluated afterwards.
                if step in scores:
                    evaluated(tmp_path, step, scores[step], test=1 - step)
    assert kept[4] == [3, 4] and kept[7] == [3, 5, 6, 7], "3 is the best, 6 no better"
    assert kept[9] == [3, 5, 8, 9] and kept[11] == [5, 9, 10, 11]
    checkpoints = checkpoint.Checkpoints(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"checkpoint": {"best_metric": "knn_accuracy"}}))
    for asked, meant in {"best": [9], "latest": [11, 10, 9, 5], None: [11, 10, 9, 5], "5": [5], 10: [10]}.items():
        assert best_checkpoint.choose_steps(tmp_path, asked, checkpoints) == meant
    # Where the config is lost, the newest checkpoint knows.
    (tmp_path / "config.json").unlink()
    assert best_checkpoint.choose_steps(tmp_path, "best", checkpoints) == [9]


def test_a_step_that_is_not_there_gets_a_line_that_says_what_to_do(tmp_path):
    for asked, metric, words in (
        ("best", "", r"--step=best: .*train with --config.checkpoint.best_metric.*or use one of 5, 10"),
        ("best", "knn_accuracy", r"--step=best: no checkpoint has a validation knn_accuracy yet; .*5, 10"),
        ("7", "", r"--step=7: must be latest, best or one of 5, 10"),
        ("9" * 5000, "", "must be latest, best or one of"),
        ("../5", "", "must be latest, best or one of"),
    ):
        with pytest.raises(UserError, match=words):
            best_checkpoint.choose(tmp_path, asked, [5, 10], metric, f"--step={asked}")
