"""The compiled pipeline is the golden beside its source, and its steps carry no code of their own."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import yaml

from stageline.config.cluster import ClusterConfig, StorageConfig
from stageline.errors import MissingPartError
from stageline.jobs.defaults import FOLDER as DEFAULTS
from stageline.kube.rights import DEFAULTS as ASKED_DEFAULTS
from stageline.pipeline.compiled import compile_pipeline, compiled_pipeline
from stageline.pipeline.parameters import PARAMETERS
from stageline.pipeline.request import NAMES
from stageline.store.credentials import DEFAULT_FOLDER
from stageline.store.settings import CA_FOLDER

PIPELINES = Path(__file__).resolve().parents[2] / "pipelines"
GOLDEN = PIPELINES / "film_flow.yaml"
WITH_CLAIM = PIPELINES / "film_flow_pvc.yaml"
REFERENCES = re.compile(r"\w+=\{\{[^{}]+\}\}( \w+=\{\{[^{}]+\}\})*")
"""Words `role=reference`, as a stage with parents is given them."""
BOTH = pytest.mark.parametrize("golden", [GOLDEN, WITH_CLAIM], ids=lambda path: path.stem)


@cache
def load(golden: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(pipeline, its settings for Kubernetes)"""
    pipeline, platforms = yaml.load_all(golden.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    return pipeline, platforms["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def compiled(family: str, path: Path, **given: Any) -> None:
    """`compile_pipeline` on a thread: kfp looks at every frame of the stack at every step, and pytest's is deep."""
    with ThreadPoolExecutor(1) as thread:
        thread.submit(compile_pipeline, family, path, **given).result()


@pytest.mark.slow
@pytest.mark.parametrize(("golden", "claim"), [(GOLDEN, None), (WITH_CLAIM, "")], ids=["s3", "claim"])
def test_compiling_again_gives_the_golden(golden: Path, claim: str | None, tmp_path: Path) -> None:
    compiled("film_flow", tmp_path / "again.yaml", claim=claim)
    assert (tmp_path / "again.yaml").read_text() == golden.read_text(), "`make render` writes them"


def test_the_installed_pipelines_are_the_goldens() -> None:
    assert compiled_pipeline("film_flow").read_text() == GOLDEN.read_text()
    assert compiled_pipeline("film_flow", with_claim=True).read_text() == WITH_CLAIM.read_text()


def test_a_pipeline_that_is_not_there_names_what_to_install() -> None:
    with pytest.raises(MissingPartError, match="compiled pipeline of 'no_family'"):
        compiled_pipeline("no_family")


def test_a_pipeline_that_was_compiled_for_other_stages_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the stage that has no step is missed only after all others were trained."""
    (tmp_path / "film_flow.yaml").write_text(GOLDEN.read_text().replace("constant: film\n", "constant: filmed\n"))
    monkeypatch.setattr("stageline.pipeline.compiled.importlib.util.find_spec", lambda _: spec(tmp_path))
    with pytest.raises(MissingPartError, match="backbone, filmed, film_flow has backbone, film"):
        compiled_pipeline("film_flow")


def spec(folder: Path) -> ModuleSpec:
    found = ModuleSpec("stageline_pipelines", None, is_package=True)
    found.submodule_search_locations = [str(folder)]
    return found


@BOTH
def test_steps_run_in_order_and_pass_references_as_strings(golden: Path) -> None:
    plain, _ = load(golden)
    tasks = plain["root"]["dag"]["tasks"]
    assert set(tasks) == {"prepare-data", "train-stage", "train-stage-2", "evaluate", "report"}
    assert tasks["train-stage-2"]["dependentTasks"] == ["prepare-data", "train-stage"]
    assert tasks["evaluate"]["dependentTasks"] == ["prepare-data", "train-stage", "train-stage-2"]
    assert tasks["report"]["dependentTasks"] == ["evaluate"]
    for task in tasks.values():
        assert task["cachingOptions"] == {}, "kfp's cache key is not content"
    for component in plain["components"].values():
        assert component["outputDefinitions"]["parameters"] == {"reference": {"parameterType": "STRING"}}


OF_PLACES = {"launcher_image", "defaults"}
"""They say where steps run, and do not reach them."""


@BOTH
def test_every_parameter_reaches_every_step_by_itself_and_is_explained(golden: Path) -> None:
    """In a text put together of several parameters a quotation mark would break KFP's own JSON."""
    plain, _ = load(golden)
    parameters = plain["root"]["inputDefinitions"]["parameters"]
    for name, definition in parameters.items():
        assert definition["description"], name
        assert "defaultValue" in definition, f"{name} can be left out"
    for task in plain["root"]["dag"]["tasks"].values():
        given = task["inputs"]["parameters"]
        for name in set(parameters) - OF_PLACES:
            assert given[name] == {"componentInputParameter": name}
        texts = [value["runtimeValue"]["constant"] for value in given.values() if "runtimeValue" in value]
        mixed = [text for text in texts if text.count("{{") and text.partition("{{")[0]]
        assert all(REFERENCES.fullmatch(text) for text in mixed), "references hold no quotation marks"
        assert given["kfp_run"]["runtimeValue"]["constant"] == "{{$.pipeline_job_uuid}}"


@BOTH
def test_the_parameters_are_those_that_a_request_reads(golden: Path) -> None:
    parameters = set(load(golden)[0]["root"]["inputDefinitions"]["parameters"])
    assert parameters - OF_PLACES <= NAMES
    documented = (PIPELINES.parent / "docs" / "pipeline.md").read_text()
    assert [name for name in sorted(parameters) if f"`{name}`" not in documented] == []


def test_artifacts_are_typed() -> None:
    components = load(GOLDEN)[0]["components"]
    found = {
        name: sorted(a["artifactType"]["schemaTitle"] for a in c["outputDefinitions"]["artifacts"].values())
        for name, c in components.items()
    }
    assert found == {
        "comp-prepare-data": ["system.Dataset"],
        "comp-train-stage": ["system.Metrics", "system.Model"],
        "comp-train-stage-2": ["system.Metrics", "system.Model"],
        "comp-evaluate": ["system.Metrics"],
        "comp-report": ["system.HTML"],
    }


@BOTH
def test_a_body_is_one_call_into_the_library_and_installs_nothing(golden: Path) -> None:
    executors = load(golden)[0]["deploymentSpec"]["executors"]
    for name, executor in executors.items():
        source = executor["container"]["command"][3]
        body = source[source.index('"""', source.index('"""') + 3) + 3 :]
        lines = [line.strip() for line in body.splitlines() if line.strip()]
        assert lines[:2] == ["given = dict(locals())", "from stageline.pipeline import steps"], name
        assert len(lines) == 3, name
        assert lines[2].startswith("return steps."), name
        assert "pip install" not in str(executor), name


@BOTH
def test_a_step_is_ready_for_restricted_namespaces_and_says_what_it_needs(golden: Path) -> None:
    plain, platform = load(golden)
    for name, executor in plain["deploymentSpec"]["executors"].items():
        container = executor["container"]
        assert container["image"] == "{{$.inputs.parameters['pipelinechannel--launcher_image']}}", name
        assert set(container["resources"]) >= {"resourceCpuRequest", "resourceMemoryRequest", "resourceMemoryLimit"}
        assert platform[name]["securityContext"] == {"runAsNonRoot": True}
        assert platform[name]["imagePullPolicy"] == "IfNotPresent"
        defaults, *authority = platform[name]["configMapAsVolume"]
        assert (defaults["mountPath"], defaults["optional"]) == (str(DEFAULTS), True)
        assert defaults["configMapNameParameter"] == {"componentInputParameter": "defaults"}
        shown = plain["root"]["inputDefinitions"]["parameters"]["defaults"]["defaultValue"]
        assert shown == ClusterConfig().defaults == ASKED_DEFAULTS
        if golden is WITH_CLAIM:
            (mount,) = platform[name]["pvcMount"]
            assert mount["mountPath"] == StorageConfig().mount_path, "the same in steps and in jobs"
            continue
        (secret,) = platform[name]["secretAsVolume"]
        assert (secret["mountPath"], secret["optional"]) == (str(DEFAULT_FOLDER), True)
        assert (authority[0]["mountPath"], authority[0]["optional"]) == (str(CA_FOLDER), True)


def test_the_components_are_those_that_the_table_of_parameters_renders() -> None:
    script = PIPELINES.parent / "scripts" / "render_components.py"
    spec = importlib.util.spec_from_file_location("render_components", script)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.render() == module.FILE.read_text(), "`make render` writes it"


def test_docs_list_the_table_of_parameters_with_their_keys() -> None:
    documented = (PIPELINES.parent / "docs" / "pipeline.md").read_text()
    rows = dict(re.findall(r"^\| `(\w+)` \|.*\| (?:`([\w.]+)`|\w*) ?\|$", documented, re.MULTILINE))
    assert set(rows) == {parameter.name for parameter in PARAMETERS}
    assert {name: key for name, key in rows.items() if key} == {p.name: p.key for p in PARAMETERS if p.key}


CHAIN_OF_A_FAMILY = """
import sys, types, yaml
from pathlib import Path
from types import SimpleNamespace
from stageline.families import FAMILIES
from stageline.stage import Stage, Stages

def stage(name, **fields):
    return Stage(name, objective="mse", metric="error", steps=1, **fields)

STAGES = Stages(
    stage("sparse"),
    stage("motion", opt_in=True),
    stage("both", parents={"sparse": "sparse", "motion": "motion"}, optional_parents=frozenset({"motion"})),
)
module = types.ModuleType("made_up.config")
module.FAMILY_CONFIG = SimpleNamespace(stages=STAGES)
sys.modules["made_up"], sys.modules["made_up.config"] = types.ModuleType("made_up"), module
FAMILIES["made_up"] = "made_up"
from pathlib import Path
from stageline_components.chain import make_pipelines
from stageline.pipeline.compiled import compile_pipeline

pipelines = types.ModuleType("stageline_pipelines.made_up")
pipelines.made_up, pipelines.made_up_pvc = make_pipelines("made_up")
sys.modules[pipelines.__name__] = pipelines
folder, image = Path(sys.argv[1]), sys.argv[2]
compile_pipeline("made_up", folder / "plain.yaml")
compile_pipeline("made_up", folder / "own.yaml", claim="data", image=image)
"""
PINNED = "registry.example/stageline/launcher@sha256:" + "0" * 64


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the compiled chain of a made-up family: `plain.yaml`, and `own.yaml` with an own claim and image.

    In a process of its own, whose few modules and shallow stack kfp is done with in no time.
    """
    folder = tmp_path_factory.mktemp("chain")
    done = subprocess.run(
        [sys.executable, "-c", CHAIN_OF_A_FAMILY, str(folder), PINNED], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_image_and_claim_are_defaults_that_compiling_can_change(chain: Path) -> None:
    inputs = load(chain / "own.yaml")[0]["root"]["inputDefinitions"]["parameters"]
    assert inputs["launcher_image"]["defaultValue"] == PINNED
    assert inputs["claim"]["defaultValue"] == "data"


def test_a_family_gets_a_step_per_stage_and_each_role_its_parent(chain: Path) -> None:
    for name in ("plain", "own"):
        plain, _ = load(chain / f"{name}.yaml")
        tasks = plain["root"]["dag"]["tasks"]
        constants = {
            task["taskInfo"]["name"]: {
                name: value["runtimeValue"]["constant"]
                for name, value in task["inputs"]["parameters"].items()
                if "runtimeValue" in value
            }
            for task in tasks.values()
        }
        assert set(constants) == {*("prepare data", "train sparse", "train motion", "train both", "evaluate", "report")}
        first, second = (
            f"{{{{$.inputs.parameters['pipelinechannel--{task}-reference']}}}}"
            for task in ("train-stage", "train-stage-2")
        )
        assert constants["train sparse"]["parents"] == constants["train motion"]["parents"] == ""
        assert constants["train both"]["parents"] == f"sparse={first} motion={second}"
        assert len(constants["evaluate"]["checkpoints"].split(" ")) == 3
        assert {given["family"] for given in constants.values()} == {"made_up"}
