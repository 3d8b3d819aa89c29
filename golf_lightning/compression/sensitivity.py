"""How much the loss minds an error in each row of each matrix: the other half of the curvature.

Near trained weights an error ``e`` of a row costs about ``s/2 * e H e^T`` nats per token, where ``H`` is the mean of
``x x^T`` over tokens and ``s`` the row's sensitivity: the mean square of the gradient at its output. Their product is
the Kronecker-factored Fisher information (Martens and Grosse, K-FAC, arXiv 1503.05671). Here ``s`` comes from
gradients of the weights themselves over several batches, whitened by ``H``: so looped layers and both uses of the tied
embedding are counted as they are, and the compiled training graph serves.
"""

import itertools
from collections.abc import Iterable

import torch
import torch.distributed as dist
from torch import Tensor

from golf_lightning.compression.hessians import Calibration
from golf_lightning.data.batch import IGNORED, PackedBatch
from golf_lightning.errors import GolfError
from golf_lightning.model.config import matrix_inputs
from golf_lightning.model.gpt import GPT

# N matrices of a bank, R rows (outputs), C columns (inputs)

DAMPING = 0.01
"""Added to the diagonal of a mean Hessian before whitening, as a fraction of its mean diagonal."""


# Lightning's validation, in which `export` runs, has gradients off.
@torch.inference_mode(False)
@torch.enable_grad()
def collect_sensitivities(
    model: GPT, batches: Iterable[PackedBatch], calibration: Calibration, *, count: int
) -> dict[str, Tensor]:
    """Sensitivity of every row, in nats per token over the squared unit of the row's output.

    With a mean gradient ``g`` of T tokens, the covariance of ``g`` over batches is ``1/T`` of the Fisher information of
    a token. The batches' own mean is taken out: it is not curvature.

    Args:
        model: the model that ``calibration`` was collected from; run as it is, forward and backward.
        batches: packed training batches; at most ``count`` are drawn over all ranks together.
        calibration: Hessians of this model.
        count: batches over all ranks; each rank runs ``ceil(count / ranks)``.

    Returns:
        ``[N, R]`` float32 of every bank, and ``[1, R]`` of the embedding; never negative.

    Raises:
        GolfError: fewer than two batches over all ranks, or gradients that are not finite.
    """
    sites = matrix_inputs(model.config)
    whitening = _whitening(calibration)
    parameters = dict(model.named_parameters())
    weights = [parameters[name] for name in sites]
    sums = {
        name: torch.zeros_like(parameter, dtype=torch.float32) for name, parameter in zip(sites, weights, strict=True)
    }
    squares = {name: torch.zeros(len(sites[name]), sums[name].shape[-2], device=sums[name].device) for name in sites}
    totals = torch.zeros(2, dtype=torch.float64, device=model.embedding.device)
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    for batch in itertools.islice(batches, -(-count // ranks)):
        # Copies, since batches may have been made where gradients were off.
        tokens, targets, cu_seqlens = (
            x.to(model.embedding.device, copy=True) for x in (batch.tokens, batch.targets, batch.cu_seqlens)
        )
        scored = (targets != IGNORED).sum()
        loss = model(tokens, targets, cu_seqlens).sum() / scored
        for name, gradient in zip(sites, torch.autograd.grad(loss, weights), strict=True):
            _add(gradient.float(), [whitening[site] for site in sites[name]], sums[name], squares[name])
        totals += torch.stack([scored.double(), torch.ones_like(scored, dtype=torch.float64)])
    if ranks > 1:
        for tensor in (totals, *sums.values(), *squares.values()):
            dist.all_reduce(tensor)
    tokens_seen, batches_seen = totals.tolist()
    if batches_seen < 2:
        raise GolfError("Sensitivities need at least two batches of training data; prepare more data.")
    found = {}
    for name, square_NR in squares.items():
        mean_NR = sums[name].view(*square_NR.shape, -1).square().sum(-1) / batches_seen
        variance_NR = (square_NR - mean_NR).clamp_min(0) / (batches_seen - 1)
        found[name] = variance_NR * (tokens_seen / batches_seen) / sums[name].shape[-1]
        if not found[name].isfinite().all():
            raise GolfError(f"The gradients of {name} are not finite; export an earlier checkpoint.")
    return found


@torch.no_grad()
def _whitening(calibration: Calibration) -> dict[str, Tensor]:
    """Lower Cholesky factor L of each site's damped mean Hessian: ``L^-1 g^T`` varies alike in all directions."""
    factors = {}
    for site, hessian_CC in calibration.hessians.items():
        mean_CC = hessian_CC / calibration.tokens
        level = mean_CC.diagonal().mean()
        mean_CC.diagonal().add_(DAMPING * level + (level == 0))
        factors[site] = torch.linalg.cholesky(mean_CC)
    return factors


@torch.no_grad()
def _add(gradient: Tensor, factors: list[Tensor], total: Tensor, square_NR: Tensor) -> None:
    gradient_NRC = gradient.view(len(factors), *gradient.shape[-2:])
    white_NCR = torch.linalg.solve_triangular(torch.stack(factors), gradient_NRC.transpose(1, 2), upper=False)
    square_NR += white_NCR.square().sum(1)
    total += white_NCR.transpose(1, 2).reshape(total.shape)
