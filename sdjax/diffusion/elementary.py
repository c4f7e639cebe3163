"""Elementary functions whose bits are the same on every machine.

numpy chooses its logarithms and sines by the processor's instruction set, and so does the C library, whose versions
differ too. What decides an image is made of these instead: sums, products, quotients and square roots of float64 alone,
each of which IEEE 754 rounds in one way. The formulas and coefficients are those of Sun's fdlibm (`e_log.c`, `e_exp.c`,
`k_sin.c`, `k_cos.c`, `s_expm1.c`, `s_atan.c`; https://www.netlib.org/fdlibm), within an error or two of the last bit.

Every function takes a float or an array of float64, and gives the same kind.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float64

Number = TypeVar("Number", float, Float64[np.ndarray, "..."])

# Of ln 2 and pi / 2: the first bits, so few that products with small integers are exact, and the rest.
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10
_HALF_PI_HIGH, _HALF_PI_LOW = 1.57079632673412561417e00, 6.07710050650619224932e-11
_HALF_LOG_2PI = 0.9189385332046727

_LOG = (
    1.479819860511658591e-01, 1.531383769920937332e-01, 1.818357216161805012e-01, 2.222219843214978396e-01,
    2.857142874366239149e-01, 3.999999999940941908e-01, 6.666666666666735130e-01,
)  # fmt: skip
_EXP = (
    4.13813679705723846039e-08, -1.65339022054652515390e-06, 6.61375632143793436117e-05,
    -2.77777777770155933842e-03, 1.66666666666666019037e-01,
)  # fmt: skip
_EXPM1 = (
    -2.01099218183624371326e-07, 4.00821782732936239552e-06, -7.93650757867487942473e-05,
    1.58730158725481460165e-03, -3.33333333333331316428e-02, 1.0,
)  # fmt: skip
_SIN = (
    1.58969099521155010221e-10, -2.50507602534068634195e-08, 2.75573137070700676789e-06,
    -1.98412698298579493134e-04, 8.33333333332248946124e-03, -1.66666666666666324348e-01,
)  # fmt: skip
_COS = (
    -1.13596475577881948265e-11, 2.08757232129817482790e-09, -2.75573143513906633035e-07,
    2.48015872894767294178e-05, -1.38888888888741095749e-03, 4.16666666666666019037e-02,
)  # fmt: skip
_ATAN = (
    1.62858201153657823623e-02, -3.65315727442169155270e-02, 4.97687799461593236017e-02, -5.83357013379057348645e-02,
    6.66107313738753120669e-02, -7.69187620504482999495e-02, 9.09088713343650656196e-02, -1.11111104054623557880e-01,
    1.42857142725034663711e-01, -1.99999999998764832476e-01, 3.33333333333329318027e-01,
)  # fmt: skip
# Stirling's series of the logarithm of the gamma function, in 1 / z^2.
_STIRLING = (1 / 156, -691 / 360360, 1 / 1188, -1 / 1680, 1 / 1260, -1 / 360, 1 / 12)


def log(x: Number) -> Number:
    """The natural logarithm of positive numbers."""
    share, power = _frexp(x)
    small = share < math.sqrt(0.5)
    share, power = share + share * small, power - small
    f = share - 1
    s = f / (2 + f)
    half = 0.5 * f * f
    return power * _LN2_HIGH - ((half - (s * (half + s * s * _polynomial(_LOG, s * s)) + power * _LN2_LOW)) - f)


def log1p(x: Number) -> Number:
    """The logarithm of 1 + x, for x above -1, exact near 0."""
    whole = 1 + x
    return log(whole) + (x - (whole - 1)) / whole


def exp(x: Number) -> Number:
    """e to the power of x, where that is no larger than a float64."""
    x = _where(x < -746.0, -746.0, x)  # below, it is 0
    power = _rint(x * (1 / math.log(2)))
    high, low = x - power * _LN2_HIGH, power * _LN2_LOW
    r = high - low
    c = r - r * r * _polynomial(_EXP, r * r)
    return _ldexp(1 - ((low - r * c / (2 - c)) - high), power)


def expm1(x: Number) -> Number:
    """e to the power of x, less 1, exact near 0."""
    near = _where(abs(x) < 0.35, x, 0.0)
    half = 0.5 * near
    square = near * half
    ratio = _polynomial(_EXPM1, square)
    t = 3 - ratio * half
    return _where(abs(x) < 0.35, near - (near * (square * ((ratio - t) / (6 - near * t))) - square), exp(x) - 1)


def sin(x: Number) -> Number:
    """The sine of angles up to some thousands."""
    return sin_cos(x)[0]


def cos(x: Number) -> Number:
    """The cosine of angles up to some thousands."""
    return sin_cos(x)[1]


def tan(x: Number) -> Number:
    """The tangent of angles up to some thousands."""
    sine, cosine = sin_cos(x)
    return sine / cosine


def sin_cos(x: Number) -> tuple[Number, Number]:
    """Sine and cosine of angles up to some thousands."""
    quarters = _rint(x * (2 / math.pi))
    high, low = x - quarters * _HALF_PI_HIGH, quarters * _HALF_PI_LOW
    r = high - low
    rest = (high - r) - low
    z = r * r
    sine = r + (z * r * _polynomial(_SIN, z) + rest)
    half = 0.5 * z
    near = 1 - half
    cosine = near + (((1 - near) - half) + (z * z * _polynomial(_COS, z) - r * rest))
    turn = quarters - 4 * _floor(quarters / 4)
    swapped = (turn == 1) | (turn == 3)
    one, two = _where(swapped, cosine, sine), _where(swapped, sine, cosine)
    return _where(turn >= 2, -one, one), _where((turn == 1) | (turn == 2), -two, two)


def atan(x: Number) -> Number:
    """The arc tangent, also of infinity."""
    size = abs(x)
    steep = size > 1
    t = _where(steep, 1 / _where(steep, size, 1.0), size)
    wide = t > 0.4375  # turned back by atan(1/2)
    t = _where(wide, (t - 0.5) / (1 + 0.5 * t), t)
    z = t * t
    angle = _where(wide, 0.4636476090008061, 0.0) + (t - t * z * _polynomial(_ATAN, z))
    angle = _where(steep, math.pi / 2 - angle, angle)
    return _where(x < 0, -angle, angle)


def acos(x: Number) -> Number:
    """The arc cosine of numbers from -1 to 1."""
    last = x == -1
    ratio = (1 - x) / _where(last, 1.0, 1 + x)
    return _where(last, math.pi, 2 * atan(_sqrt(ratio)))


def power(x: Number, exponent: float) -> Number:
    """A positive number, or any number where the exponent is whole and not negative, to a power."""
    if exponent == int(exponent) and 0 <= exponent <= 64:
        result = 0 * x + 1
        for _ in range(int(exponent)):
            result = result * x
        return result
    return exp(exponent * log(x))


def log_gamma(x: float) -> float:
    """The logarithm of the gamma function of a positive number."""
    product = 1.0
    while x < 16:
        product, x = product * x, x + 1
    return (x - 0.5) * log(x) - x + _HALF_LOG_2PI + _polynomial(_STIRLING, 1 / (x * x)) / x - log(product)


def solve(matrix: Sequence[Sequence[float]], right: Sequence[float]) -> list[float]:
    """The solution of a few linear equations, by elimination with the largest pivot."""
    rows = [[*map(float, row), float(value)] for row, value in zip(matrix, right, strict=True)]
    for place in range(len(rows)):
        largest = max(range(place, len(rows)), key=lambda row: abs(rows[row][place]))
        rows[place], rows[largest] = rows[largest], rows[place]
        for below in rows[place + 1 :]:
            factor = below[place] / rows[place][place]
            below[:] = [value - factor * above for value, above in zip(below, rows[place], strict=True)]
    result: list[float] = []
    for place in reversed(range(len(rows))):
        *_, known = rows[place]
        for factor, value in zip(rows[place][place + 1 : -1], result, strict=True):
            known -= factor * value
        result.insert(0, known / rows[place][place])
    return result


def polynomial_with_roots(roots: Iterable[float]) -> list[float]:
    """The coefficients, lowest first, of the product of (x - root)."""
    result = [1.0]
    for root in roots:
        raised = [0.0, *result]
        result = [high - float(root) * low for high, low in zip(raised, [*result, 0.0], strict=True)]
    return result


# --- what floats and arrays write differently; all of it exact ---


def _polynomial(coefficients: Sequence[float], x: Any) -> Any:
    """Horner's scheme; the coefficient of the highest power first."""
    total: Any = coefficients[0]
    for coefficient in coefficients[1:]:
        total = total * x + coefficient
    return total


def _frexp(x: Any) -> tuple[Any, Any]:
    return np.frexp(x) if isinstance(x, np.ndarray) else math.frexp(x)


def _ldexp(x: Any, exponent: Any) -> Any:
    return np.ldexp(x, exponent.astype(np.int32)) if isinstance(x, np.ndarray) else math.ldexp(x, int(exponent))


def _sqrt(x: Any) -> Any:
    return np.sqrt(x) if isinstance(x, np.ndarray) else math.sqrt(x)


def _rint(x: Any) -> Any:
    return np.rint(x) if isinstance(x, np.ndarray) else float(round(x))


def _floor(x: Any) -> Any:
    return np.floor(x) if isinstance(x, np.ndarray) else float(math.floor(x))


def _where(condition: Any, true: Any, false: Any) -> Any:
    return np.where(condition, true, false) if isinstance(condition, np.ndarray) else (true if condition else false)
