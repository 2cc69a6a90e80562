"""`pruneopt check` on names, modules, files, folders, and on what it cannot use."""

from __future__ import annotations

import textwrap

import pytest
import typer
from typer.testing import CliRunner

from pruneopt.cli.check import check_command
from pruneopt.errors import PruneoptError
from pruneopt.testing import check_score, check_solver, parametrize_with_checks
from pruneopt.testing.targets import find_parts

app = typer.Typer()
app.command()(check_command)

GOOD = '''
from dataclasses import dataclass
from typing import ClassVar
from pruneopt.parts import Score

@dataclass(frozen=True)
class Norm(Score):
    """Norm of a token, `[B,N]`; higher is kept."""

    name: ClassVar[str] = "some_norm"

    @property
    def needs(self):
        return frozenset({"features"})

    def __call__(self, signals):
        return signals["features"].float().norm(dim=2)
'''
BAD = GOOD.replace(".norm(dim=2)", ".norm(dim=2).nan_to_num(0)").replace("some_norm", "hiding_norm")


def run(*arguments: str):
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def plugin(tmp_path):
    """A plugin folder with one good part."""
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "x"\n[project.entry-points."pruneopt.scores"]\n'
        'some_norm = "checked_plugin.part:Norm"\n'
    )
    package = tmp_path / "checked_plugin"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "part.py").write_text(textwrap.dedent(GOOD))
    return tmp_path


def test_a_good_file_conforms_and_a_bad_one_does_not(tmp_path):
    (tmp_path / "good_norm_part.py").write_text(GOOD)
    (tmp_path / "bad_norm_part.py").write_text(BAD)
    good = run(str(tmp_path / "good_norm_part.py"))
    assert good.exit_code == 0 and "conforms" in good.output
    bad = run(str(tmp_path / "bad_norm_part.py"))
    assert bad.exit_code == 1
    assert "nan_is_flagged" in bad.output and "NaN in 'features'" in bad.output
    both = run(str(tmp_path))
    assert both.exit_code == 1 and "some_norm" in both.output and "hiding_norm" in both.output


def test_an_expected_failure_is_no_failure_and_a_surprise_is(tmp_path):
    path = tmp_path / "expected_norm_part.py"
    path.write_text(BAD)
    assert run(str(path), "--expect", "check_nan_is_flagged=documented").exit_code == 0
    surprise = run(str(path), "--expect", "check_nan_is_flagged=x", "--expect", "check_shapes=y")
    assert surprise.exit_code == 1 and "passes although" in surprise.output


def test_a_plugin_folder_is_checked_through_its_entry_points(plugin):
    result = run(str(plugin), "--all")
    assert result.exit_code == 0 and "spec_round_trip" in result.output


@pytest.mark.parametrize(
    ("target", "names"),
    [
        ("cosine_distance", ["cosine_distance"]),
        ("scores/token_norm", ["token_norm"]),
        ("token_norm", ["token_norm", "token_norm"]),
        ("pruneopt.parts.costs.cosine_distance", ["cosine_distance"]),
        ("pruneopt.parts.costs.cosine_distance:CosineDistance", ["cosine_distance"]),
        ("pruneopt.parts.costs.cosine_distance.CosineDistance", ["cosine_distance"]),
    ],
)
def test_targets(target, names):
    assert [part.name for part in find_parts(target)] == names


@pytest.mark.parametrize(
    ("target", "match"),
    [
        ("cosine_distanc", "did you mean 'cosine_distance'"),
        ("cots/cosine_distance", "did you mean 'costs'"),
        ("pruneopt.costs.no_such_module.Thing", "cannot import"),
        ("pruneopt.parts.costs.cosine_distance:Cosine", "did you mean 'CosineDistance'"),
        ("pruneopt.errors", "defines no part"),
        ("no_such_file.py", "does not exist"),
        ("a b c", "no registered part"),
    ],
)
def test_unusable_targets_are_refused_by_name(target, match):
    with pytest.raises(PruneoptError, match=match):
        find_parts(target)
    result = run(target)
    assert isinstance(result.exception, PruneoptError)  # the application turns it into exit code 2


def test_unusable_folders(tmp_path):
    with pytest.raises(PruneoptError, match=r"neither a pyproject\.toml nor Python files"):
        find_parts(str(tmp_path))
    (tmp_path / "broken.py").write_text("import no_such_package_here")
    with pytest.raises(PruneoptError, match="no_such_package_here"):
        find_parts(str(tmp_path))
    (tmp_path / "pyproject.toml").write_text("[project")
    with pytest.raises(PruneoptError, match="not valid TOML"):
        find_parts(str(tmp_path))
    (tmp_path / "pyproject.toml").write_text('[project.entry-points."pruneopt.cots"]\nx = "y:Z"\n')
    with pytest.raises(PruneoptError, match="did you mean 'costs'"):
        find_parts(str(tmp_path))
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'x'\n")
    with pytest.raises(PruneoptError, match="declares no part"):
        find_parts(str(tmp_path))


def test_parameters_are_given_on_the_command_line():
    assert isinstance(run("score_threshold").exception, PruneoptError)
    assert run("score_threshold", "--param", "bound=0.5").exit_code == 0
    assert isinstance(run("uniform", "--param", "bound").exception, PruneoptError)


def test_entry_points_of_the_suite_refuse_other_kinds():
    from pruneopt.parts.scores.token_norm import TokenNormScore
    from pruneopt.parts.solvers.stable_top_k import StableTopK

    assert check_solver(StableTopK()).ok
    assert check_score(TokenNormScore).ok
    with pytest.raises(PruneoptError, match="no solver"):
        check_solver(TokenNormScore())
    with pytest.raises(PruneoptError, match="no score"):
        check_score(StableTopK())


def test_parametrize_makes_one_item_per_check():
    from pruneopt.parts.scores.token_norm import TokenNormScore

    mark = parametrize_with_checks([TokenNormScore()], {"token_norm": {"check_shapes": "because"}})
    ids = [row.id for row in mark.mark.args[1]]
    assert "token_norm-check_permutation" in ids and len(ids) == len(set(ids)) > 15
    marked = {row.id: row.marks[0] for row in mark.mark.args[1] if row.marks}
    assert list(marked) == ["token_norm-check_shapes"]
    assert marked["token_norm-check_shapes"].kwargs["strict"] is True
    with pytest.raises(PruneoptError, match="check_shape"):
        parametrize_with_checks([TokenNormScore()], {"token_norm": {"check_shape": "typo"}})
