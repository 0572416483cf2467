"""CONTRIBUTING.md followed to the letter, over the real files but without changing them.

What a recipe adds or changes is written to a folder of its own and loaded from there over the
modules of this process, which are put back afterwards.
"""

import importlib
import importlib.util
import re
import shlex
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from support import commands
from support.launcher import FOLDERS

from halfway import models
from halfway.lab import studies
from halfway.lab.config import config_file
from halfway.lab.entry import launch

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (Add an? .*?)\n(.*?)(?=^## |\Z)", TEXT, flags=re.M | re.S))
STUDIES = "halfway/lab/studies/"


def steps_of(section):
    """The steps of a recipe: a file, whether a block changes it, and the block."""
    steps, path = [], None
    for line in re.findall(r"^```\w+\n.*?^```$|^[^\n]*$", section, flags=re.M | re.S):
        if not line.startswith("```"):
            path = (re.findall(r"`([\w/]+(?:\.\w+)+)`[^`]*:$", line) or [path])[0]
            continue
        language, block = line.removesuffix("```")[3:].split("\n", 1)
        if language != "sh":
            steps.append((path, language == "diff", block))
    return steps


def place(path):
    """The place that a file belongs to: a hypothesis is one folder."""
    return str(Path(path).parent) if path.startswith(STUDIES) else path


def changed(content, block):
    """A file's content after a change, whose lines begin with a space, "+" or "-".

    Lines that stay or go must be in the file, one after the other, in one place only. One that
    ends in "..." stands for a line that begins so.
    """
    old, new, lines = [], [], content.split("\n")
    for line in block.rstrip("\n").split("\n"):
        sign, text = line[:1], line[1:]
        assert sign in (" ", "+", "-"), line
        if sign != "+":
            old.append(text)
        new.append((sign, text))

    def fits(start):
        window = lines[start : start + len(old)]
        return len(window) == len(old) and all(
            line.startswith(text[:-3]) if text.endswith(" ...") else line == text
            for line, text in zip(window, old, strict=True)
        )

    starts = [start for start in range(len(lines)) if fits(start)]
    assert len(starts) == 1, f"{len(starts)} places in the file fit\n{block}"
    kept = iter(lines[starts[0] : starts[0] + len(old)])
    result = []
    for sign, text in new:
        line = text if sign == "+" else next(kept)
        if sign != "-":
            result.append(line)
    lines[starts[0] : starts[0] + len(old)] = result
    return "\n".join(lines)


class Tree:
    """The files that a recipe adds or changes, in a folder of their own.

    Args:
      folder: where they are written.
      monkeypatch: puts back what is loaded over the modules of this process.
    """

    def __init__(self, folder, monkeypatch):
        self.folder, self._patch = folder, monkeypatch

    def follow(self, recipe):
        """Takes every step of a recipe, then loads what it changed of the package."""
        steps = steps_of(SECTIONS[recipe])
        for path, changes, block in steps:
            target = self.folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if changes:
                source = target if target.exists() else ROOT / path
                block = changed(source.read_text(encoding="utf-8"), block)
            else:
                assert not (ROOT / path).exists(), f"{path} is there already"
            target.write_text(block, encoding="utf-8")
        paths = [
            path
            for path in dict.fromkeys(path for path, *_ in steps)
            if path.startswith("halfway/")
        ]
        for path in paths:
            self._extend(next(folder for folder in Path(path).parents if (ROOT / folder).is_dir()))
        importlib.invalidate_caches()
        for path in paths:
            if (ROOT / path).exists():
                self._load_over(path)

    def _extend(self, folder):
        """Lets the package of a folder find what the recipe puts there."""
        package = importlib.import_module(".".join(folder.parts))
        if str(self.folder / folder) not in package.__path__:
            places = [*package.__path__, str(self.folder / folder)]
            self._patch.setattr(package, "__path__", places)

    def _load_over(self, path):
        """Gives a module all that its changed file defines."""
        name = ".".join(Path(path).with_suffix("").parts).removesuffix(".__init__")
        module = importlib.import_module(name)
        spec = importlib.util.spec_from_file_location(name, self.folder / path)
        fresh = importlib.util.module_from_spec(spec)
        if hasattr(module, "__path__"):
            fresh.__path__ = module.__path__
        spec.loader.exec_module(fresh)
        for variable, value in vars(fresh).items():
            if not variable.startswith("__") or variable == "__all__":
                self._patch.setattr(module, variable, value, raising=False)

    def tests(self, path):
        """A test file, changed or as it is, whose neighbours are those of the folder."""
        target = self.folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy(ROOT / path, target)
        spec = importlib.util.spec_from_file_location(f"followed_{target.stem}", target)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def pages(self):
        """The tests of the pages, on copies of the pages with what the recipe changed."""
        (self.folder / "docs").mkdir(exist_ok=True)
        for source in [*(ROOT / "docs").glob("*"), ROOT / "README.md"]:
            target = self.folder / source.relative_to(ROOT)
            if source.is_file() and not target.exists():
                shutil.copy(source, target)
        return self.tests("tests/documents/test_docs.py")


@pytest.fixture
def tree(tmp_path, monkeypatch):
    before = set(sys.modules)
    studies.available.cache_clear()
    yield Tree(tmp_path, monkeypatch)
    monkeypatch.undo()
    studies.available.cache_clear()
    for name in set(sys.modules) - before:
        origin = getattr(sys.modules[name], "__file__", None) or ""
        if origin.startswith(str(tmp_path)):
            parent, _, child = name.rpartition(".")
            vars(sys.modules.get(parent, sys)).pop(child, None)
            del sys.modules[name]


def test_a_recipe_touches_three_places_at_most():
    assert list(SECTIONS) == [
        "Add an attack",
        "Add a model",
        "Add a data set",
        "Add a hypothesis",
        "Add a figure",
        "Add a flag",
    ]
    for name, section in SECTIONS.items():
        steps = steps_of(section)
        assert len({place(path) for path, *_ in steps}) == 3, name
        assert len(re.findall(r"^\d\. ", section, flags=re.M)) == 3, name
        assert all(len(block.splitlines()) < 60 for *_, block in steps), name


def test_a_change_that_does_not_fit_is_noticed():
    content = "first\nsecond\nthird one\nsecond\n"
    assert changed(content, " first\n+new\n-second\n") == "first\nnew\nthird one\nsecond\n"
    assert changed(content, "+new\n third ...\n") == "first\nsecond\nnew\nthird one\nsecond\n"
    for wrong in (" fourth\n+new\n", " second\n+new\n", "-third\n", " first\n third one\n"):
        with pytest.raises(AssertionError):
            changed(content, wrong)


def test_commands_exist():
    """Every command of ours takes the flags it is given; every file that is tested is there."""
    lines = re.findall(
        r"^[^`\n]+$", "\n".join(re.findall(r"```sh\n(.*?)```", TEXT, flags=re.S)), re.M
    )
    lines += re.findall(r"`((?:pytest|halfway) [^`]+)`", TEXT)
    parts = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    assert {"pytest", "halfway", "ruff", "pyright", ".ci/nightly"} <= {words[0] for words in parts}
    for program, *arguments in parts:
        if program == "halfway" and "--only=G1" not in arguments:  # the flag is added by a recipe
            name, *rest = arguments
            values = commands.flags_of(name).FLAGS
            launch.parse(values, rest, positional=name == "compare")
            values.unparse_flags()
        if program == "pytest":
            tested = [argument for argument in arguments if argument.startswith("tests/")]
            assert all((ROOT / path).exists() for path in tested), arguments
        if program.startswith(".ci/"):
            assert (ROOT / program).is_file()


def test_add_an_attack(tree):
    tree.follow("Add an attack")
    pages = tree.pages()
    pages.test_every_attack_is_in_the_table()
    pages.test_options_of_an_attack_are_those_of_the_table("adam_fgsm")
    assert len(pages.find_examples("halfway.attacks.adaptive")) == 1
    pages.test_examples_in_docstrings_run("halfway.attacks.adaptive")
    user_models = importlib.import_module("halfway.lab.user_models.loading")
    assert "adam_fgsm" in user_models.attack_names()


def _dry_run(tree, *arguments):
    result = commands.call(tree.folder, "reproduce", *arguments, *FOLDERS, "--dry_run")
    assert result.code == 0, result
    return result.out


def test_add_a_model(tree):
    tree.follow("Add a model")
    module = tree.tests("tests/test_models.py")
    model = module.drawn(module.CONFIGS["residual_mlp"])
    module.test_logits_against_the_layers_written_out(model)
    module.test_logits_of_an_example_depend_on_that_example_alone(model)
    assert "residual" in _dry_run(tree, "--config=residual.py", "--only=G1")


def test_add_a_data_set(tree):
    tree.follow("Add a data set")
    pages = tree.pages()
    assert len(pages.find_examples("halfway.data.clouds")) == 1
    pages.test_examples_in_docstrings_run("halfway.data.clouds")
    (line,) = re.findall(r"^halfway reproduce (.*clouds.*)$", TEXT, flags=re.M)
    assert "mlp" in _dry_run(tree, *line.split(), "--only=G1")


def test_add_a_hypothesis(tree, monkeypatch):
    tree.follow("Add a hypothesis")
    rules = importlib.import_module("lab.studies.test_rules")
    planted = tree.tests("tests/lab/studies/plants/g9.py")
    monkeypatch.setitem(rules.PLANTS, "G9", planted)
    monkeypatch.setattr(rules, "STUDIES", rules.deciding())
    assert list(studies.available())[8] == "G9"
    rules.test_every_study_is_planted_and_has_its_words()
    (boundary,) = planted.BOUNDARIES
    few = rules.NUM_DRAWS
    rules.test_size_with_one_test_at_the_boundary_of_its_null("G9", boundary, few)
    rules.test_power_at_the_smallest_effect_worth_reporting("G9", few)
    generic = [fn for fn in vars(rules).values() if _is_of_each_study(fn)]
    assert len(generic) > 10
    for test in generic:
        test("G9")


def _is_of_each_study(function):
    marks = getattr(function, "pytestmark", [])
    return any(mark.name == "parametrize" and mark.args[0] == "name" for mark in marks)


def test_add_a_figure(tree):
    tree.follow("Add a figure")
    module = tree.tests("tests/plots/test_plots.py")
    module.test_a_histogram_counts_what_is_finite()
    module.test_every_figure_is_drawn_on_the_axes_given()


def test_add_a_flag(tree, capsys):
    tree.follow("Add a flag")
    module = tree.tests("tests/lab/commands/test_compare.py")
    folder = module.make_run(tree.folder)
    module.test_some_hypotheses(folder, capsys)
    module._run("--only=G1", str(folder), str(folder))
    assert "G1" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["Add a model", "Add a data set"])
def test_a_whole_run(tree, recipe):
    """The command at the end of a recipe, from training to its report."""
    tree.follow(recipe)
    (line,) = re.findall(r"`?halfway reproduce (.*?)`?\.?$", SECTIONS[recipe], flags=re.M)
    result = commands.call(tree.folder, "reproduce", *line.split(), *FOLDERS, "--workdir=run")
    assert result.code == 0, result
    assert "G1" in result.out and (tree.folder / "run" / "report.html").is_file()


def test_a_model_is_used_without_adding_it(tmp_path, monkeypatch):
    """The file and the flags of the recipe give a config whose model can be trained."""
    section = re.search(r"^## Use a model without .*?(?=^## )", TEXT, flags=re.M | re.S)
    assert section is not None
    source, command = re.findall(r"```(?:python|sh)\n(.*?)```", section[0], flags=re.S)
    (tmp_path / "mine.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    flags = dict(re.findall(r"--config\.(\S+?)=(\S+)", command))
    config = config_file.load("digits:tiny", flags).config
    module = models.build(config.models["mine"], num_classes=config.num_classes)
    images = np.zeros((3, 8, 8, 1), np.float32)
    variables = module.init(jax.random.key(0), images)
    assert variables["params"]["first"]["kernel"].shape == (64, 32)
    assert module.apply(variables, images).shape == (3, 10)
    told = studies.unsuitable(studies.choose(["all"]), config)
    assert set(told) == set(re.findall(r"\b[GT]\d+\b", section[0]))
