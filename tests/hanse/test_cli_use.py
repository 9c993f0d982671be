"""`hanse evaluate`, `predict` and `generate`: a trained model put to use."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from core.data.sources.bundled import read_table
from hanse.cli import main
from hanse.commands.generate import read_writing
from hanse.writer import cut, decoded

CONFIGS = {
    "wine": 'data: {kind: table, path: "bundled:wine"}\nmodel: {kind: mlp, hidden: [16]}\ntrain: {steps: 60}\n',
    "diabetes": """\
data: {kind: table, path: "bundled:diabetes"}
model: {kind: mlp, hidden: []}
objective: {kind: regression}
train: {steps: 60}
""",
    "english": """\
data: {kind: text, path: "bundled:english", context: 48, limit_bytes: 20000}
model: {kind: gpt, width: 32, layers: 1, heads: 2}
train: {steps: 30, batch_size: 8}
""",
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A run of each kind, by name."""
    root = tmp_path_factory.mktemp("trained")
    for name, text in CONFIGS.items():
        (root / f"{name}.yaml").write_text(text)
        assert main(["train", str(root / f"{name}.yaml"), f"run_dir={root / name}", "--quiet"]) == 0
    return {name: str(root / name) for name in CONFIGS}


def ended(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert found["event"] == "end"
    return found


# --- evaluate ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONFIGS)
def test_evaluating_a_run_gives_the_metrics_of_its_summary(
    name: str, trained: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", trained[name], "--json"]) == 0
    said = ended(capsys)["summary"]
    before = json.loads((Path(trained[name]) / "summary.json").read_text())
    assert said["split"] == before["split"] == "test"
    assert said["metrics"] == pytest.approx(before["metrics"], rel=1e-6)


def test_evaluating_shows_metrics_and_which_class_is_taken_for_which(
    trained: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", trained["wine"]]) == 0
    out = capsys.readouterr().out
    assert "balanced_accuracy" in out and "class_1" in out and "next    hanse predict" in out


def test_a_model_directory_is_as_good_as_its_run(
    trained: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = (Path(trained["wine"]) / "model").rename(tmp_path / "elsewhere")
    try:
        assert main(["evaluate", str(copied), "--json"]) == 0
    finally:
        copied.rename(Path(trained["wine"]) / "model")
    assert ended(capsys)["run"] == str(copied)


def test_other_data_goes_through_the_preprocessing_of_the_model(
    trained: dict[str, str], wines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", trained["wine"], f"data.path={wines}", "--json"]) == 0
    said = ended(capsys)["summary"]
    assert said["examples"] == 178 and said["metrics"]["accuracy"] > 0.9


def test_what_a_model_was_trained_on_must_be_as_it_was_and_is_prepared_as_it_was(
    wines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wines.yaml").write_text(
        f'data: {{kind: table, path: "{wines}", target: target}}\nmodel: {{kind: mlp}}\ntrain: {{steps: 3}}\n'
    )
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "wines.yaml"), f"run_dir={run}", "--quiet"]) == 0
    assert main(["evaluate", str(run), "--json"]) == 0
    before = ended(capsys)["summary"]["metrics"]
    was = wines.read_text()
    wines.write_text(was.replace("class_0", "class_9"))
    assert main(["evaluate", str(run)]) == 3
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "data.path: " in said and "not what this model was trained on" in said
    assert main(["evaluate", str(run), "data.weight=w"]) == 2
    assert "data.weight: goes with other data" in capsys.readouterr().err
    wines.write_text(was.replace("class_0", "class_1"))
    assert main(["evaluate", str(run), f"data.path={wines}", "--quiet"]) == 0  # asked for by its name
    wines.write_text(was)
    capsys.readouterr()
    saved = json.loads((run / "model" / "preprocess.json").read_text())
    saved["fitted"]["features"][0]["mean"] += 100
    (run / "model" / "preprocess.json").write_text(json.dumps(saved))
    assert main(["evaluate", str(run), "--json"]) == 0
    assert ended(capsys)["summary"]["metrics"]["loss"] != before["loss"]  # nothing is fitted again


@pytest.mark.parametrize("name", ["english", "bpe", "digits"])
def test_texts_and_images_too_are_prepared_as_they_were(
    name: str, trained: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configs = {
        "bpe": "data: {kind: text, context: 16, limit_bytes: 20000, tokenizer: {kind: bpe, vocab: 280}}\n"
        "model: {kind: recurrent, hidden: 8}\ntrain: {steps: 2, batch_size: 4}\n",
        "digits": "data: {kind: image}\nmodel: {kind: mlp}\ntrain: {steps: 2}\n",
    }
    run = Path(trained.get(name, tmp_path / name))
    if name in configs:
        (tmp_path / "it.yaml").write_text(configs[name])
        assert main(["train", str(tmp_path / "it.yaml"), f"run_dir={run}", "--quiet"]) == 0
    for fit in ("core.data.image._fit", "core.data.text.make_tokenizer", "core.data.table.fit_table"):
        monkeypatch.delattr(fit)
    assert main(["evaluate", str(run), "--quiet"]) == 0
    config = json.loads((run / "model" / "config.json").read_text())
    (run / "model" / "config.json").write_text(json.dumps({**config, "data_sha256": "0" * 64}))
    assert main(["evaluate", str(run), "--quiet"]) == 3
    (run / "model" / "config.json").write_text(json.dumps(config))


# --- predict -------------------------------------------------------------------------------------------------------


def test_predictions_agree_with_the_evaluation_of_the_same_rows(
    trained: dict[str, str], wines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "answers.csv"
    assert main(["predict", trained["wine"], f"data.path={wines}", f"out={out}"]) == 0
    with out.open() as answers, wines.open() as truths:
        rows, expected = list(csv.DictReader(answers)), [row["target"] for row in csv.DictReader(truths)]
    assert [int(row["row"]) for row in rows] == list(range(1, 179))
    assert all(1 / 3 <= float(row["probability"]) <= 1 for row in rows)
    right = sum(row["class"] == truth for row, truth in zip(rows, expected, strict=True))
    capsys.readouterr()
    assert main(["evaluate", trained["wine"], f"data.path={wines}", "--json"]) == 0
    assert right / 178 == pytest.approx(ended(capsys)["summary"]["metrics"]["accuracy"])


def test_a_value_is_predicted_in_the_units_of_the_table(trained: dict[str, str], tmp_path: Path) -> None:
    table, path, out = read_table("diabetes"), tmp_path / "patients.csv", tmp_path / "answers.jsonl"
    lines = [",".join(table.columns), *[",".join(map(str, row)) for row in table.inputs]]
    path.write_text("\n".join(lines) + "\n")  # without the target: there is nothing to know yet
    assert main(["predict", trained["diabetes"], f"data.path={path}", f"out={out}"]) == 0
    values = [json.loads(line)["value"] for line in out.read_text().splitlines()]
    assert len(values) == 442 and abs(sum(values) / 442 - table.targets.mean()) < 15


def test_without_out_the_first_rows_are_shown(
    trained: dict[str, str], wines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["predict", trained["wine"], f"data.path={wines}"]) == 0
    out = capsys.readouterr().out
    assert "rows 178  shown 20" in out and "out=answers.csv" in out.splitlines()[-1]
    assert main(["predict", trained["wine"], f"data.path={wines}", "--json"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 178 + 1


# --- generate ------------------------------------------------------------------------------------------------------


def test_generate_writes_the_prompt_and_what_follows_and_nothing_else(
    trained: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", trained["english"], "prompt=a: b", "max_new_tokens=12"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("a: b") and len(out.encode()) >= 4 + 1 and out.endswith("\n")


def test_the_same_seed_writes_the_same_text_and_another_one_another(
    trained: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    texts = []
    for seed in (1, 1, 2):
        words = ["generate", trained["english"], "prompt=The ", "max_new_tokens=30", f"seed={seed}", "--json"]
        assert main(words) == 0
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        texts.append(lines[-1]["summary"]["text"])
        assert texts[-1] == "".join(line["text"] for line in lines[:-1])
        assert len(lines) > 10  # it came in pieces
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("words", [["temperature=0"], ["beams=3"], ["top_k=5", "top_p=0.9", "repetition_penalty=1.2"]])
def test_every_way_to_choose_tokens_can_be_asked_for(
    words: list[str], trained: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", trained["english"], "prompt=The ", "max_new_tokens=5", *words]) == 0
    assert capsys.readouterr().out.startswith("The ")


def test_a_beam_search_refuses_settings_that_it_would_pass_over(
    trained: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", trained["english"], "prompt=The ", "beams=3", "top_k=5", "temperature=0"]) == 2
    said = capsys.readouterr().err
    assert "beams: above 1 searches without chance; leave temperature, top_k out, or set beams=1" in said


def test_a_language_model_keeps_samples_of_what_it_writes(trained: dict[str, str]) -> None:
    samples = json.loads((Path(trained["english"]) / "summary.json").read_text())["samples"]
    assert len(samples) >= 2 and all(sample["prompt"] and sample["text"] for sample in samples)


@pytest.mark.parametrize("context", [1, 2, 3, 4, 5])
def test_samples_fit_into_any_context(context: int, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(CONFIGS["english"].replace("context: 48", f"context: {context}"))
    run = tmp_path / "run"
    assert main(["train", str(tmp_path / "tiny.yaml"), f"run_dir={run}", "train.steps=1", "--quiet"]) == 0
    assert json.loads((run / "run.json").read_text())["status"] == "done"
    samples = json.loads((run / "summary.json").read_text())["samples"]
    assert [sample["prompt"] for sample in samples] == [text[: max(1, context - 1)] for text in ("The ", "In ", "\n")]


def test_texts_on_the_command_line_are_taken_as_they_are() -> None:
    writing = read_writing(["prompt=key: [1, 2", "stop=.", r"stop=\n", "temperature=0.5"])
    assert writing.prompt == "key: [1, 2" and writing.stop == (".", "\n") and writing.temperature == 0.5


@pytest.mark.parametrize(
    "pieces, stop, text",
    [
        (["ab", "c."], (".",), "abc"),
        (["ab", "E", "N", "D", "x"], ("END",), "ab"),
        (["abE", "Nx"], ("END",), "abENx"),
        (["abE", "N"], ("END",), "abEN"),
        (["a--b", "-c"], ("-c", "--b"), "a"),
        (["abc"], (), "abc"),
    ],
)
def test_text_ends_before_the_first_stop_word_however_it_is_cut(
    pieces: list[str], stop: tuple[str, ...], text: str
) -> None:
    assert "".join(cut(pieces, stop)) == text


def test_the_bytes_of_one_character_stay_together() -> None:
    class Bytes:
        def decode(self, tokens: list[int]) -> str:
            return bytes(tokens).decode(errors="replace")

    text = "a\u00e9\u4e16\U0001f600z"
    assert list(decoded(text.encode(), Bytes())) == list(text)
    assert "".join(decoded(b"a\xff\xff\xff\xff\xffb", Bytes())).strip("\ufffd") == "a" + "\ufffd" * 5 + "b"
    assert list(decoded(b"a\xc3", Bytes())) == ["a", "\ufffd"]


def test_a_model_is_asked_only_what_it_can_answer(
    trained: dict[str, str], wines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", trained["wine"], "prompt=x"]) == 2
    assert "writes no text; use `hanse predict`" in capsys.readouterr().err
    assert main(["predict", trained["english"], f"data.path={wines}"]) == 2
    assert "use `hanse generate`" in capsys.readouterr().err
