"""The documentation site: `make docs` builds it, without a network, into build/docs.

Markdown pages that live elsewhere in the repository become pages of the site (PAGES), tables are made of the numbers of
studies (TABLES), and the live explorer page is made from the demo photos with the packaged detector. All go to
docs/generated, which git ignores.
"""

import importlib.util
import json
import re
from pathlib import Path

import deformscope

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[1]
GENERATED, EXTRA = HERE / "generated", HERE / "generated/extra"
EXTRA.mkdir(parents=True, exist_ok=True)
PAGES = {
    "CHANGELOG.md": "changelog",
    "CONTRIBUTING.md": "contributing",
    "SECURITY.md": "security",
    "benchmarks/README.md": "benchmarks",
    "src/deformscope/weights/MODEL_CARD.md": "model_card",
    "src/deformscope/weights/MODEL_CARD_GUIDED.md": "model_card_guided",
    "src/deformscope/weights/MODEL_CARD_TRUNK.md": "model_card_trunk",
}
"""Pages from outside docs/, by their path in the repository."""

TABLES = {
    "studies/attention/results.json": "attention_tables",
    "studies/claims/tables.json": "claims_tables",
    "studies/offsets_at_work/runs.json": "offsets_at_work_runs",
    "studies/trunk/runs.json": "trunk_runs",
}
"""Numbers of studies; `markdown` of the study's tables.py makes a page of them."""

project = "deformscope"
author = "The deformscope authors"
copyright = "2026, the deformscope authors"
release = version = deformscope.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx_copybutton"]
exclude_patterns = ["figures"]
nb_execution_mode = "off"  # the tests execute the notebooks; the site shows the outputs that they keep
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4
suppress_warnings = ["myst.header"]  # a page may begin below a picture, a table cell may not hold a heading

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "deformscope"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["generated/extra"]
html_copy_source = False
html_show_sphinx = False
html_theme_options = {"navigation_with_keys": True}

LINK = re.compile(r"(\]\()([^)#\s:]+)(#[^)\s]*)?(\))")


def relinked(text: str, folder: Path) -> str:
    """The page with its links to files of PAGES, and from one of these pages to docs/, led to pages of the site."""

    def lead(match: re.Match[str]) -> str:
        target = (folder / match[2]).resolve()
        if not target.is_relative_to(ROOT):
            return match[0]
        place = target.relative_to(ROOT).as_posix()
        if place in PAGES or place in TABLES:
            place = f"/generated/{(PAGES | TABLES)[place]}.md"
        elif target.is_relative_to(HERE):
            place = f"/{target.relative_to(HERE).as_posix()}"
        else:
            return match[0] if folder.is_relative_to(HERE) else f"{match[1]}/../{place}{match[3] or ''}{match[4]}"
        return f"{match[1]}{place}{match[3] or ''}{match[4]}"

    return LINK.sub(lead, text)


def tables(numbers: Path) -> str:
    """The page of a study's numbers."""
    spec = importlib.util.spec_from_file_location(f"tables_of_{numbers.parent.name}", numbers.with_name("tables.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return "---\norphan: true\n---\n\n" + module.markdown(json.loads(numbers.read_text(encoding="utf-8")))


def generate(app) -> None:
    for source, name in PAGES.items():
        text = relinked((ROOT / source).read_text(encoding="utf-8"), (ROOT / source).parent)
        page = GENERATED / f"{name}.md"
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")
    for source, name in TABLES.items():
        (GENERATED / f"{name}.md").write_text(tables(ROOT / source), encoding="utf-8")
    catalogue = (HERE / "llms.txt").read_text(encoding="utf-8")
    (EXTRA / "llms.txt").write_text(catalogue.replace(".md)", ".html)"), encoding="utf-8")
    explorer = EXTRA / "explorer-page.html"
    if not explorer.exists():
        import skimage.data

        from deformscope.explorer import write

        photos = ("chelsea.png", "astronaut.png", "coffee.png")
        detector, folder = deformscope.load("packaged"), Path(skimage.data.__file__).parent
        write(explorer, [deformscope.analyse(detector, folder / name).with_composed() for name in photos], photos)


def relink(app, name: str, source: list[str]) -> None:
    path = HERE / f"{name}.md"
    if path.exists() and not name.startswith("generated/"):
        source[0] = relinked(source[0], path.parent)


def setup(app) -> None:
    app.connect("builder-inited", generate)
    app.connect("source-read", relink)
