"""The configuration: what is refused, and in which words."""

import pytest

from restrl import config
from restrl.errors import RestrlError

MINIMAL = 'out = "runs/x"\n[model]\npath = "m"\n[problems]\ntrain = "t.jsonl"\n'


def write(tmp_path, text=MINIMAL):
    path = tmp_path / "c.toml"
    path.write_text(text)
    return path


def test_defaults_are_the_papers(tmp_path):
    run = config.load(write(tmp_path))
    assert (run.sample.n, run.sample.temperature, run.sample.max_new_tokens) == (5, 0.7, 1024)
    assert (run.assemble.sigma0, run.assemble.r0, run.assemble.alpha) == (0.05, 0.9, 0.95)
    train = run.train
    assert (train.loss_type, train.beta, train.epsilon, train.learning_rate) == ("bnpo", 0.04, 0.2, 1e-7)
    assert (train.num_generations, train.prompts_per_step, train.data_seed) == (8, 8, 42)
    collect, decode = run.collect, run.decode
    assert (collect.simulations, collect.k, collect.num_decisions, collect.c) == (100, 5, 3, 0.2)
    assert (decode.simulations, decode.k, decode.num_decisions, decode.c) == (20, 5, 5, 0.1)


def test_overrides(tmp_path):
    path = write(tmp_path)
    run = config.load(path, ["seed=3", "train.beta=0", "model.path=other/dir", 'decode.methods=["greedy"]'])
    assert (run.seed, run.train.beta, run.model.path, run.decode.methods) == (3, 0, "other/dir", ["greedy"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.lr=1"], r"unknown key train\.lr; known here: method, preset"),
        (["nonsense=1"], r"unknown key nonsense; known here: out, seed"),
        (["train.beta=-1"], r"train\.beta: .*greater than or equal to 0"),
        (["train.loss_type=ppo"], r"train\.loss_type: .*'grpo', 'bnpo'"),
        (["train"], "not of the form section.key=value"),
        (["seed.x=1", "seed=1", "seed.x=1"], "seed is not a section"),
        (["assemble.partial_count=-1"], r"assemble\.partial_count.*greater than or equal to 0"),
        (["decode.methods=[]"], "at least one method, and none twice"),
        (['decode.methods=["sample", "sample"]'], "at least one method, and none twice"),
        (["out="], r"out: .*at least 1 character"),
        (["train.beta=inf"], r"train\.beta: .*finite"),
        (["verifier.timeout=nan"], r"verifier\.timeout: "),
        (["train.num_generations=1"], r"train\.num_generations = 1: a group of one"),
        (["decode.budget=2"], r"c\.toml: decode\.budget = 2 is less than decode\.k = 5"),
    ],
)
def test_mistakes_are_named(tmp_path, overrides, message):
    with pytest.raises(RestrlError, match=message):
        config.load(write(tmp_path), overrides)


def test_damaged_files(tmp_path):
    with pytest.raises(RestrlError, match="no such config file"):
        config.load(tmp_path / "missing.toml")
    with pytest.raises(RestrlError, match="cannot be read: Is a directory"):
        config.load(tmp_path)
    with pytest.raises(RestrlError, match=r"c\.toml: not valid TOML"):
        config.load(write(tmp_path, "out = "))
    with pytest.raises(RestrlError, match=r"c\.toml: model: Field required"):
        config.load(write(tmp_path, 'out = "x"\n[problems]\ntrain = "t"\n'))


def test_difference_names_every_changed_key():
    assert config.difference({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 4, "d": 3}, "e": 5}) == [
        "b.c: 2 -> 4",
        "e: None -> 5",
    ]


def test_every_key_of_the_schema_round_trips(tmp_path):
    run = config.load(write(tmp_path))
    assert config.parse(run.model_dump()) == run


@pytest.mark.parametrize("text", ["1.16", '"1.16"'])
def test_a_preset_is_a_release_and_not_a_number(tmp_path, text):
    path = tmp_path / "run.toml"
    path.write_text('out = "o"\n[model]\npath = "m"\n[problems]\ntrain = "t"\ntest = "t"\n', "utf-8")
    assert config.load(path, [f"train.preset={text}"]).train.preset == "1.16"
