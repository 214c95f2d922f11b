"""Every recipe that is shipped is whole, valid, and found wherever the package is."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from igpt.clusters import load_cluster
from igpt.config import parse, plain, read_yaml_file
from igpt.errors import UserError
from igpt.jobs import find_job, job_names
from igpt.jobs.recipes import NOUNS, find_recipe, packaged, recipe_names, write_recipes
from igpt.storage import Store
from tests.cli.command import igpt

ROOT = Path(__file__).parent.parent.parent
JOBS = [("jobs", name) for name in ("features", "generate", "pretrain", "shard")]


def test_every_shipped_recipe_is_known_to_these_tests(tmp_path: Path) -> None:
    assert [("jobs", name) for name in recipe_names("jobs", tmp_path)] == JOBS
    assert recipe_names("sweeps", tmp_path) == ["probe"]
    assert recipe_names("clusters", tmp_path) == ["local", "ray", "slurm"]
    assert job_names() == ["features", "generate", "pretrain", "probe", "shard"]


@pytest.mark.parametrize(("noun", "name"), [*JOBS, ("sweeps", "probe")])
def test_a_recipe_writes_out_every_key_with_its_default(noun: str, name: str) -> None:
    document = read_yaml_file(packaged(noun) / f"{name}.yaml")
    written = plain(parse(find_job(name).config, document))

    def keys(data: object, at: str = "") -> set[str]:
        if not isinstance(data, dict):
            return {at}
        return {key for inner in data for key in keys(data[inner], f"{at}.{inner}")}

    assert keys(document.data) == keys(written)


def test_the_local_cluster_is_its_defaults_written_out(tmp_path: Path) -> None:
    from igpt.clusters.local.config import LocalCluster

    assert load_cluster("local", tmp_path) == LocalCluster()


def test_the_slurm_cluster_names_every_field_and_changes_only_sizes(tmp_path: Path) -> None:
    from igpt.clusters.slurm.config import SlurmCluster

    document = read_yaml_file(packaged("clusters") / "slurm.yaml")
    assert set(document.data) == set(SlurmCluster.model_fields)
    shipped = load_cluster("slurm", tmp_path)
    sizes = {"workers": 8, "gpus_per_node": 8}
    assert shipped == SlurmCluster.model_validate(sizes)


def test_the_ray_cluster_names_every_field_and_changes_only_sizes(tmp_path: Path) -> None:
    from igpt.clusters.ray.config import RayCluster

    document = read_yaml_file(packaged("clusters") / "ray.yaml")
    assert set(document.data) == set(RayCluster.model_fields)
    sizes = {"workers": 8, "cpus_per_worker": 4, "gpus_per_worker": 1}
    assert load_cluster("ray", tmp_path) == RayCluster.model_validate(sizes)


def test_a_recipe_here_goes_before_the_packaged_one(tmp_path: Path) -> None:
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "pretrain.yaml").write_text("job: pretrain\n")
    assert find_recipe("jobs", "pretrain", tmp_path) == tmp_path / "jobs" / "pretrain.yaml"
    assert find_recipe("jobs", "jobs/pretrain.yaml", tmp_path).parent == tmp_path / "jobs"
    assert find_recipe("jobs", "shard", tmp_path).parent == packaged("jobs")


def test_init_writes_the_recipes_and_keeps_what_is_there(tmp_path: Path) -> None:
    written, kept = write_recipes(tmp_path)
    assert kept == []
    assert {path.relative_to(tmp_path).parts[0] for path in written} == set(NOUNS)
    assert tmp_path / "clusters" / "grafana" / "igpt.json" in written
    (tmp_path / "jobs" / "shard.yaml").write_text("mine")
    written, kept = write_recipes(tmp_path)
    assert written == []
    assert (tmp_path / "jobs" / "shard.yaml").read_text() == "mine"
    write_recipes(tmp_path, force=True)
    assert (tmp_path / "jobs" / "shard.yaml").read_text() != "mine"


def test_a_recipe_that_is_not_there_offers_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match='did you mean "shard"'):
        find_recipe("jobs", "shards", tmp_path)


def test_every_job_recipe_can_be_dry_run(root: Store, tmp_path: Path) -> None:
    def dry_run(*arguments: str) -> str:
        ended = igpt(*arguments, "--dry-run", folder=tmp_path, store=root.uri)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    model = ["model=./model", "data=data/digits"]
    _export(root, tmp_path / "model")
    assert "parameters" in dry_run("submit", "pretrain", "data=data/digits")
    assert "images" in dry_run("submit", "features", *model)
    assert "draws" in dry_run("submit", "generate", *model)
    assert "fits" in dry_run("sweep", "probe", *model, "budgets=[40,all]")
    (tmp_path / "pictures").mkdir()
    _picture(tmp_path / "pictures" / "a.png")
    assert "1 " in dry_run("submit", "shard", "source=folder:pictures")
    assert root.children("runs") == []


def test_the_recipes_travel_in_the_wheel(tmp_path: Path) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"),
            *("--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)),
        ],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    unpacked = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(unpacked)
    code = (
        "from pathlib import Path\n"
        "import igpt\n"
        "from igpt.jobs.recipes import packaged, write_recipes\n"
        f"assert igpt.__file__.startswith({str(unpacked)!r}), igpt.__file__\n"
        "assert '_recipes' in str(packaged('jobs'))\n"
        f"written, _ = write_recipes(Path({str(tmp_path / 'study')!r}))\n"
        "print(len(written))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={"PYTHONPATH": str(unpacked), "PATH": "/usr/bin:/bin"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    shipped = sum(len(list((ROOT / noun).rglob("*.*"))) for noun in NOUNS)
    assert int(ended.stdout) == shipped
    assert (unpacked / "igpt" / "py.typed").exists()


def _export(root: Store, folder: Path) -> None:
    from igpt.data import open_dataset
    from igpt.model.config import ModelConfig
    from igpt.model.interchange import export_huggingface
    from igpt.model.transformer import ImageGPT

    palette = open_dataset(root.sub("data/digits")).palette()
    shape = ModelConfig(layers=1, width=8, heads=1, resolution=8, colors=16)
    export_huggingface(ImageGPT(shape), palette, folder)


def _picture(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (8, 8), (10, 20, 30)).save(path)
