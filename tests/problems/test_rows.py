"""Terms by rows against the matrices that they stand for, and who may have the matrix."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from pruneopt.errors import ProblemError
from pruneopt.problems import rows as algebra
from pruneopt.problems import unstored
from pruneopt.problems.row_sums import Averaged, Mapped, Raised, Scaled, Total, averaged
from pruneopt.problems.rows import Beside, Cosines, Gram, Rows, Stored, constant
from pruneopt.problems.subset import SubsetProblem
from pruneopt.problems.unstored import Unstored, rows_of

G = torch.Generator().manual_seed(0)
X = torch.randn(2, 9, 3, generator=G)
Y = torch.randn(2, 9, 3, generator=G)
UNIT = X / X.norm(dim=2, keepdim=True)
U, V = X[:, :, 0], Y[:, :, 1]
XX, XY = X @ X.transpose(1, 2), X @ Y.transpose(1, 2)
NUMBERS = torch.tensor([0.5, -2.0])
TERMS: dict[str, tuple[Rows, Tensor]] = {
    "stored": (Stored(XY), XY),
    "gram": (Gram(X), XX),
    "gram of two": (Gram(X, Y), XY),
    "beside": (Beside(U), U[:, :, None] + U[:, None, :]),
    "beside of two": (Beside(U, V), U[:, :, None] + V[:, None, :]),
    "mapped": (Mapped(Gram(X), lambda g: g.exp_()), XX.exp()),
    "mapped matrix": (Mapped(Stored(XY), lambda g: g.mul_(2)), 2 * XY),
    "scaled": (
        Scaled(Gram(X, Y), NUMBERS, torch.tensor([4.0, 0.0])),
        torch.stack([(XY[0] - 0.5) / 4, 0 * XY[1]]),
    ),
    "total": (Total((Gram(X), Stored(XY), Beside(U)), (1.0, -2.0, 0.5)),
              XX - 2 * XY + (U[:, :, None] + U[:, None, :]) / 2),
    "averaged": (Averaged(Gram(X, Y)), (XY + XY.transpose(1, 2)) / 2),
    "raised": (Raised(Gram(X), 3.0), XX + 3 * torch.eye(9)),
    "cosines": (Cosines(UNIT), (UNIT @ UNIT.transpose(1, 2)).masked_fill(torch.eye(9) == 1, 1.0)),
    "constant": (constant(0.7, Gram(X)), torch.full((2, 9, 9), 0.7)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(algebra, "BLOCK", 2 * 9 * 4 * 2)  # two rows of both samples


@pytest.mark.parametrize("name", TERMS)
def test_every_way_to_read_a_term_gives_its_matrix(name: str) -> None:
    term, matrix = TERMS[name]
    close = {"rtol": 1e-5, "atol": 1e-5}
    rows, cols = torch.tensor([[4, 0, 8], [1, 1, 7]]), torch.tensor([[3, 2], [8, 0]])
    each = torch.arange(2)[:, None]
    assert term.shape == (2, 9, 9) and term.like.dtype == torch.float32
    torch.testing.assert_close(term.dense(), matrix, **close)
    torch.testing.assert_close(term.block(rows), matrix[each, rows], **close)
    picked = matrix[each[:, :, None], rows[:, :, None], cols[:, None, :]]
    torch.testing.assert_close(term.block(rows, cols), picked, **close)
    torch.testing.assert_close(term.block(slice(2, 5), slice(0, 4)), matrix[:, 2:5, :4], **close)
    torch.testing.assert_close(term.row(rows[:, 0]), matrix[each[:, 0], rows[:, 0]], **close)
    torch.testing.assert_close(term.own(), matrix.diagonal(dim1=1, dim2=2), **close)
    torch.testing.assert_close(term.turned().dense(), matrix.transpose(1, 2), **close)
    torch.testing.assert_close(term.samples(slice(1, 2)).dense(), matrix[1:], **close)
    read = list(term.blocks())
    assert [i for part, _ in read for i in range(9)[part]] == list(range(9))
    torch.testing.assert_close(torch.cat([entries for _, entries in read], 1), matrix, **close)


@pytest.mark.parametrize("name", TERMS)
def test_products_and_sums_are_those_of_the_matrix(name: str) -> None:
    term, matrix = TERMS[name]
    x = torch.randn(2, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    real = torch.arange(9) < torch.tensor([[9], [6]])
    close = {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(term.product(x), (matrix.double() @ x[:, :, None]).squeeze(2), **close)
    torch.testing.assert_close(term.sums(), matrix.double().sum(2), **close)
    torch.testing.assert_close(term.sums(real), (matrix.double() * real[:, None, :]).sum(2), **close)


@pytest.mark.parametrize("name", TERMS)
def test_what_a_term_says_of_itself_holds(name: str) -> None:
    term, matrix = TERMS[name]
    eigen = torch.linalg.eigvalsh((matrix + matrix.transpose(1, 2)).double() / 2)
    centre = torch.eye(9, dtype=torch.float64) - 1 / 9
    flat = torch.linalg.eigvalsh(centre @ ((matrix + matrix.transpose(1, 2)).double() / 2) @ centre)
    assert not term.symmetric or torch.allclose(matrix, matrix.transpose(1, 2))
    assert not term.definite or eigen.min() >= -1e-5
    assert not term.negative_type or flat.max() <= 1e-5
    if (found := term.factor()) is not None:
        made = found[0] @ found[0].transpose(1, 2) + torch.diag_embed(found[1])
        torch.testing.assert_close(made, matrix.double(), rtol=1e-5, atol=1e-5)


def test_signs_of_sums_are_known() -> None:
    one, cosine = constant(1.0, Gram(X)), Gram(X)
    distance = Total((one, cosine), (1.0, -1.0))
    assert distance.negative_type and distance.symmetric and not distance.definite
    assert Total((cosine, cosine), (1.0, 2.0)).definite
    assert not Total((cosine, cosine), (1.0, -2.0)).definite
    assert not Total((distance, cosine), (1.0, 1.0)).negative_type
    assert not Scaled(distance, NUMBERS, NUMBERS).negative_type
    assert Scaled(distance, NUMBERS, NUMBERS.abs()).negative_type
    assert not Raised(cosine, -1.0).definite
    assert Total((cosine, cosine), (1.0, -2.0)).factor() is None
    assert averaged(cosine) is cosine and isinstance(averaged(Gram(X, Y)), Averaged)


def test_sums_round_as_the_matrix_does() -> None:
    """Exact inputs give the same bits, so ties are the same."""
    x = torch.randint(-3, 4, (1, 9, 4), generator=torch.Generator().manual_seed(2)).float()
    squares = (x * x).sum(2)
    term = Total((Beside(squares), Gram(x)), (1.0, -2.0))
    matrix = squares[:, :, None] + squares[:, None, :] - 2 * (x @ x.transpose(1, 2))
    assert torch.equal(term.dense(), matrix)
    weighted = Total((term, Gram(x)), (0.1, 0.3))
    assert torch.equal(weighted.dense(), matrix * 0.1 + (x @ x.transpose(1, 2)) * 0.3)


class Refusing(Gram):
    """Features whose products are never more than a few rows."""

    def block(self, rows: algebra.Index, cols: algebra.Index = slice(None)) -> Tensor:
        found = super().block(rows, cols)
        if found.shape[1] > 4:
            raise AssertionError(f"{found.shape[1]} rows at once")
        return found


def test_an_unstored_term_is_a_tensor_to_whoever_reads_it() -> None:
    pairs = Unstored(Gram(X))
    assert (pairs.shape, pairs.dtype, pairs.dim()) == ((2, 9, 9), torch.float32, 3)
    torch.testing.assert_close(pairs.double(), XX.double())
    torch.testing.assert_close(torch.cat([pairs, pairs], 1), torch.cat([XX, XX], 1))
    torch.testing.assert_close(pairs[1], XX[1])
    assert bool(((pairs > 0) == (XX > 0)).all())
    first, again = pairs.whole(), pairs.whole()
    assert first is again
    assert "Gram" in repr(pairs) and rows_of(pairs) is pairs.rows
    assert isinstance(rows_of(XX), Stored)


def test_a_part_of_the_samples_stays_unstored() -> None:
    part = Unstored(Refusing(X))[1:2]
    assert isinstance(part, Unstored)
    torch.testing.assert_close(part.rows.row(torch.tensor([5])), XX[1:, 5])
    problem = SubsetProblem.build("max_sum", 2, pairwise=Unstored(Refusing(X)))
    assert isinstance(problem.sample(1).pairwise, Unstored)


def test_a_matrix_that_does_not_fit_is_refused_with_the_solvers_that_need_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unstored, "_memory", lambda device: 3 * 2 * 81 * 4 - 1)
    with pytest.raises(ProblemError, match=r"2 x 9 tokens .*farthest_point.*scope=group"):
        Unstored(Gram(X)).double()
    monkeypatch.setattr(unstored, "_memory", lambda device: 3 * 2 * 81 * 4)
    torch.testing.assert_close(Unstored(Gram(X)).float(), XX)


def refusals() -> Iterator[tuple[str, Rows, str]]:
    bad = X.clone()
    bad[1, 4, 2] = torch.nan
    yield "max_min", Gram(bad), "not finite in sample 1"
    yield "max_min", Gram(X, Y), "averaged"
    yield "log_det", Total((Gram(X),), (-1.0,)), "semi-definite by construction"


@pytest.mark.parametrize(("kind", "term", "words"), list(refusals()))
def test_a_term_is_refused_for_what_it_is_made_of(kind: str, term: Rows, words: str) -> None:
    with pytest.raises(ProblemError, match=words):
        SubsetProblem.build(kind, 2, pairwise=Unstored(term))


def test_padding_may_hold_anything() -> None:
    bad = X.clone()
    bad[1, 8] = torch.inf
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 8] = False
    problem = SubsetProblem.build("max_min", 2, pairwise=Unstored(Gram(bad)), mask=mask)
    assert isinstance(problem.pairwise, Unstored)


def test_checking_reads_no_entry() -> None:
    """Build is linear in the features, for kinds that ask for a symmetric and a definite term too."""
    for kind in ("max_min", "max_sum", "log_det", "facility_location", "k_center"):
        assert SubsetProblem.build(kind, 2, pairwise=Unstored(Refusing(X))).shape == (2, 9)


def test_a_token_is_like_itself_by_one_however_it_is_read() -> None:
    """No rounding: that of a kernel without scores would decide which token comes first."""
    term = Cosines(torch.nn.functional.normalize(torch.randn(1, 50, 7, generator=G), dim=2))
    every = torch.arange(50)[None]
    for own in (
        term.own(),
        term.dense().diagonal(dim1=1, dim2=2),
        term.block(every).diagonal(dim1=1, dim2=2),
    ):
        assert own.tolist() == [[1.0] * 50]
    assert term.block(slice(10, 20)).diagonal(10, 1, 2).tolist() == [[1.0] * 10]
    assert term.block(every[:, 3:5], every[:, 4:6])[0, 1, 0].item() == 1.0
