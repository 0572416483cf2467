"""Names with markup on every page: text there, never an element, a script or an address.

Each page is made by its command or by the function behind it, from names as a folder, a flag or a
function of a user may give them, and read by a parser that accepts no mistake.
"""

import html.parser
import re
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from support import commands, hostile, launcher

NASTY = ("<script>x", "<img onerror=x>", "'\"><b>&amp;", "javascript:x")
VOID = {"meta", "link", "br", "img", "hr", "input"}
POLICY = "default-src 'none'"
_OF_PAGES = """html head meta title style body header p h1 h2 h3 nav a main section div article
figure figcaption table thead tbody tr th td span i b sub sup ul li ol dl dt dd pre code details
summary strong em"""
_OF_DRAWINGS = """svg g path circle rect defs use clippath text tspan image line polygon polyline
lineargradient stop symbol ellipse"""
ELEMENTS = {*_OF_PAGES.split(), *_OF_DRAWINGS.split()}


class Strict(html.parser.HTMLParser):
    """What a page is made of; raises where elements are not closed in their order."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.open, self.elements, self.attributes, self.words = [], set(), [], []

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.add(tag)
        self.attributes += [(tag, *attribute) for attribute in attributes]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, self.getpos()

    def handle_data(self, data):
        self.words.append(data)

    def handle_comment(self, data):
        raise AssertionError(f"a comment at {self.getpos()}: {data}")


def check(path, *names):
    """Checks a page, and the drawings beside it; the names must be read on it as they are."""
    parser = Strict()
    source = path.read_text(encoding="utf-8")
    parser.feed(source)
    parser.close()
    assert parser.open == []
    assert parser.elements <= ELEMENTS, parser.elements - ELEMENTS
    for tag, name, value in parser.attributes:
        assert not name.startswith("on"), (tag, name, value)
        if name in ("href", "xlink:href", "src", "action"):
            assert value.startswith("#") or value.startswith("data:image/png;base64,"), value
        if name == "style":
            assert "url(" not in value.replace("url(#", ""), value
    policies = [
        value for tag, name, value in parser.attributes if (tag, name) == ("meta", "content")
    ]
    (policy,) = [value for value in policies if value.startswith("default-src")]
    assert policy.startswith(POLICY) and "script" not in policy and "http" not in policy
    assert re.search(r"form-action 'none'.*base-uri 'none'|base-uri 'none'.*form-action", policy)
    assert source.index("Content-Security-Policy") < source.index("<style")
    words = " ".join("".join(parser.words).split())
    attributes = " ".join(str(value) for *_, value in parser.attributes)
    for name in names:
        assert " ".join(name.split()) in words + attributes, name
    for drawing in path.parent.rglob("*.svg"):
        root = ElementTree.parse(drawing).getroot()
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert "script" not in tags and "foreignObject" not in tags, drawing


MODULE = f"""
import jax.numpy as jnp

NAMES = {NASTY!r}

def model(shift):
    return lambda x: jnp.stack([x.sum((1, 2, 3)) - 2.0 + shift, 2.0 - x[:, 0, 0, 0]], 1)

def load():
    return model(0.0)

def load_models():
    return {{name: model(0.01 * index) for index, name in enumerate(NAMES)}}

def loss(params):
    return sum(jnp.sum(value ** 2) for value in params.values())
"""


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with a module, images and parameters, all of them with names that are hostile."""
    folder = tmp_path_factory.mktemp("names")
    (folder / "mine.py").write_text(MODULE)
    images = np.random.default_rng(0).random((8, 2, 2, 1)).astype("f4")
    np.savez(folder / "<img src=x onerror=alert(1)>.npz", images=images, labels=np.arange(8) % 2)
    np.savez(folder / "'><script>x<!--$_{.npz", w=np.ones(3, "f4"), **{"<b>": np.ones(2, "f4")})
    return folder


DATA = "--data=<img src=x onerror=alert(1)>.npz"
OUT = "out <script>alert('1')"


def ended_well(result):
    assert result.code == 0, result.err
    return result


def test_evaluation(here):
    arguments = ["--model=mine:load", DATA, "--attacks=fgsm", "--nocurves", f"--out_dir={OUT}"]
    ended_well(commands.call(here, "evaluate", *arguments, *launcher.FOLDERS))
    check(here / OUT / "evaluation.html", "<img src=x onerror=alert(1)>.npz", "out <script>alert(")


@pytest.mark.slow
def test_transfer(here):
    arguments = ["--surrogates=mine:load_models", DATA, "--attacks=fgsm", f"--out_dir={OUT} 2"]
    ended_well(commands.call(here, "transfer", *arguments, *launcher.FOLDERS))
    check(here / f"{OUT} 2" / "transfer.html", *NASTY, DATA[7:])


@pytest.mark.quick
@pytest.mark.parametrize("name", ["a$b_{$\\frac", "a\nb", "\x1b[2J"])
def test_names_that_no_figure_can_show_are_refused(name, here):
    (here / f"odd{ord(name[1])}.py").write_text(f"load = lambda: {{{name!r}: lambda x: x}}\n")
    arguments = [f"--surrogates=odd{ord(name[1])}:load", DATA]
    assert "rename the model" in commands.call(here, "transfer", *arguments).complaint


@pytest.mark.slow
def test_landscape_of_a_model(here):
    name = "'><script>x<!--$_{"
    arguments = [f"--params={name}.npz", "--loss=mine:loss", f"--workdir={OUT} 3"]
    ended_well(commands.call(here, "landscape", *arguments, *launcher.FOLDERS))
    check(here / f"{OUT} 3" / "landscape" / "landscape.html", name)


CLASSES = ("<b>ant", "'\"><script>x")
ARCHITECTURE = "<i>linear & more"
CONFIG = f"""
from halfway.lab.config import shipped

def get_config(variant=""):
    config = shipped("digits")
    config.dataset, config.num_classes = "folder:images <script>x", 2
    config.num_pairs, config.num_examples, config.num_holdout = 4, 20, 20
    config.architectures = ({ARCHITECTURE!r},)
    config.models = {{name: {{"kind": "linear"}} for name in config.architectures}}
    config.training.probe_steps, config.attack.num_steps = (0, 20), 2
    config.hypotheses = ("G1",)
    return config
"""
SWEEP = """
config = "tiny.py"
[grid]
seed = [0]
"""


@pytest.fixture(scope="module")
def run(here):
    """A run whose data, classes, model and folder have names that are hostile."""
    for split, number in (("train", 40), ("test", 4)):
        for name in CLASSES:
            folder = here / "images <script>x" / split / name
            folder.mkdir(parents=True)
            for index in range(number):
                (folder / f"<u>{index}.png").write_bytes(hostile.png(index, (8, 8, 3)))
    (here / "tiny.py").write_text(CONFIG)
    arguments = ["--config=tiny.py", f"--workdir={OUT} run", *launcher.FOLDERS]
    ended_well(commands.call(here, "reproduce", *arguments))
    return here / f"{OUT} run"


def test_report_of_a_run(run):
    check(run / "report.html", ARCHITECTURE, "images <script>x")


@pytest.mark.slow
def test_landscape_of_a_run(run):
    arguments = ["--config=tiny.py", f"--workdir={run}", *launcher.FOLDERS]
    ended_well(commands.call(run.parent, "landscape", *arguments))
    check(run / "landscape" / "landscape.html", ARCHITECTURE)


@pytest.mark.slow
def test_sweep(run):
    (run.parent / "<u>sweep.toml").write_text(SWEEP)
    arguments = ["--sweep=<u>sweep.toml", f"--workdir={OUT} sweep", *launcher.FOLDERS]
    # In a process of its own: it starts others.
    ended_well(launcher.run(run.parent, *arguments, module="experiments.sweep"))
    check(run.parent / f"{OUT} sweep" / "sweep.html", "<u>sweep")


@pytest.mark.slow
def test_laws(run):
    arguments = ["--config=tiny.py", f"--workdir={OUT} laws", *launcher.FOLDERS]
    ended_well(commands.call(run.parent, "laws", *arguments))
    check(run.parent / f"{OUT} laws" / "laws.html", "images <script>x")


@pytest.mark.slow
def test_a_browser_runs_nothing(run, tmp_path):
    """The page of a run in Chromium, and one without a policy, in which the same name would run."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")

    def read(path):
        flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/user"]
        command = [browser, *flags, "--dump-dom", path.as_uri()]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
        return done.stdout

    script = "<script>document.title = 'it ran'</script>"
    open_page, closed_page = tmp_path / "open.html", tmp_path / "closed.html"
    source = (run / "report.html").read_text()
    assert "<script" not in read(run / "report.html")
    closed_page.write_text(source.replace("</body>", f"{script}</body>"))
    assert "<title>it ran</title>" not in read(closed_page)
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>', source).group()
    open_page.write_text(closed_page.read_text().replace(policy, ""))
    assert "<title>it ran</title>" in read(open_page)
