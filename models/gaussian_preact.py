"""Networks with Gaussian pre-activations at any width (Wolinski and Arbel 2025, "Gaussian pre-activations in neural
networks: myth or reality?", arXiv 2205.12379).

    z = W phi(x)/sqrt(n),    W: symmetric Weibull(theta, 1), P(|W| > t) = exp(-t^theta);    phi = F_Y^-1(Phi(x))

phi is the odd function for which Y = phi(X), X ~ N(0, 1), makes the product W*Y Gaussian, so that z is exactly Gaussian
whatever the width n. |W Y| has the moments of a half-normal variable, hence for every complex s

    E|Y|^s = 2^(s/2) Gamma((1 + s)/2)/(sqrt(pi) Gamma(1 + s/theta))

At s = i*t this is the characteristic function of log|Y|; inverted numerically it gives the distribution of Y, and its
quantiles phi. The activation is x*P(u), u = 2.5/(1 + x^2/9) - 1.5 within -1 .. 1 for |x| <= 6, where x is clamped, and
P a polynomial that is fitted once, to about 1e-4. The paper's own phi is another fit to the same function.
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor, nn

from reparam.models.registry import register

__all__ = ["GaussianActivation", "GaussianNet", "coefficients", "quantiles", "weibull"]

LIMIT = 6.0
DEGREE = 9


def log_gamma(z: Tensor) -> Tensor:
    """log Gamma of complex numbers with a positive real part: Stirling's series, behind 12 steps of the recurrence."""
    total = torch.zeros_like(z)
    for _ in range(12):
        total = total - torch.log(z)
        z = z + 1
    series = 1 / (12 * z) - 1 / (360 * z**3) + 1 / (1260 * z**5) - 1 / (1680 * z**7)
    made: Tensor = total + (z - 0.5) * torch.log(z) - z + 0.5 * math.log(2 * math.pi) + series
    return made


def quantiles(theta: float, x: Tensor) -> Tensor:
    """phi at x, (n,) within 0 .. 7, in float64: where the distribution of |Y| reaches P(|X| < x)."""
    step = 0.1  # so that the density repeats after 63, far outside of what is asked for
    count = int(34 / (math.pi / 4 - math.pi / (2 * theta)) / step)  # where the characteristic function is e^-34
    t = torch.arange(-count, count + 1, dtype=torch.float64, device="cpu") * step
    s = torch.complex(torch.zeros_like(t), t)
    one = torch.ones_like(s)
    log_characteristic = (
        s * (math.log(2) / 2) + log_gamma((one + s) / 2) - math.log(math.pi) / 2 - log_gamma(one + s / theta)
    )
    characteristic = torch.exp(log_characteristic)
    u = torch.linspace(-18, 3.5, 8001, dtype=torch.float64, device="cpu")
    parts = [(torch.exp(-1j * v.unsqueeze(1) * t) @ characteristic).real for v in u.split(500)]
    density = torch.cat(parts).clamp(min=0) * step / (2 * math.pi)  # of log|Y|
    below = torch.cumulative_trapezoid(density, u)
    mass = torch.cat((torch.zeros(1, dtype=torch.float64), below)) / below[-1]
    wanted = torch.erf(x.double() / math.sqrt(2))
    at = torch.searchsorted(mass, wanted).clamp(1, len(u) - 1)
    share = (wanted - mass[at - 1]) / (mass[at] - mass[at - 1]).clamp(min=1e-300)
    return torch.exp(u[at - 1] + share * (u[at] - u[at - 1]))


@functools.cache
def coefficients(theta: float) -> tuple[float, ...]:
    """Of the polynomial P, the constant first: least squares on phi(x)/x, weighted towards where X is."""
    x = torch.linspace(0.02, LIMIT - 0.5, 400, dtype=torch.float64, device="cpu")
    powers = _squash(x).unsqueeze(1).pow(torch.arange(DEGREE + 1, dtype=torch.float64, device="cpu"))
    solved = torch.linalg.lstsq(powers * x.unsqueeze(1), quantiles(theta, x).unsqueeze(1), driver="gelsd").solution
    return tuple(float(c) for c in solved.flatten())


def _squash(x: Tensor) -> Tensor:
    return 2.5 / (1 + x.square() / 9) - 1.5


class GaussianActivation(nn.Module):
    """phi for the weights of Weibull(theta, 1), of any shape. Raises ValueError unless 2 < theta <= 20."""

    def __init__(self, theta: float = 4.0) -> None:
        super().__init__()
        if not 2 < theta <= 20:
            raise ValueError(f"theta is {theta}; it must lie above 2 (where phi is a sign) and at 20 at most")
        self.coefficients = coefficients(theta)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clamp(-LIMIT, LIMIT)
        u = _squash(x)
        *rest, last = self.coefficients
        y = u * last + rest[-1]
        for c in reversed(rest[:-1]):
            y = y * u + c
        return y * x


def weibull(shape: tuple[int, ...], theta: float) -> Tensor:
    """Symmetric Weibull(theta, 1): a random sign times (-log U)^(1/theta)."""
    size = (-torch.log(torch.rand(shape).clamp(min=1e-30))).pow(1 / theta)
    return torch.where(torch.rand(shape) < 0.5, -size, size)


class Layer(nn.Module):
    """W phi(x)/sqrt(n): (N, n) -> (N, m)."""

    def __init__(self, n: int, m: int, theta: float, act: nn.Module) -> None:
        super().__init__()
        self.weight = nn.Parameter(weibull((m, n), theta))
        self.bias = nn.Parameter(torch.zeros(m))
        self.act, self.scale = act, 1 / math.sqrt(n)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(self.act(x) * self.scale, self.weight, self.bias)


@register(
    "gaussian_preact",
    small={"widths": (16, 12, 12, 10)},
    published={},
    small_input=(16,),
    published_input=(784,),
)
class GaussianNet(nn.Module):
    """features (N, widths[0]), each about normal, -> (N, widths[-1]). theta: of the weights."""

    def __init__(self, widths: tuple[int, ...] = (784, *[100] * 9, 10), theta: float = 4.0) -> None:
        super().__init__()
        act = GaussianActivation(theta)
        self.layers = nn.Sequential(*(Layer(n, m, theta, act) for n, m in itertools.pairwise(widths)))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return y
