"""Evidence that one teacher suits better than another, valid however often one looks: arrays in, arrays out.

For two teachers a and b on matched problems, `D = ln(RSR_b / RSR_a)` is a smooth function of means, so that it
behaves like the mean of `y_i = (r_bi / mean r_b - s_bi / mean s_b) - (r_ai / mean r_a - s_ai / mean s_a)` (delta
method), where r and s are a problem's sums of mean ranks and of mean surprisals. The test is the sequential t-test
of Lai (1976, Annals of Statistics 4) as an e-process (Wang & Ramdas, "Anytime-valid t-tests and confidence sequences
for Gaussian means with unknown variance", arXiv:2310.03722): the likelihood ratio of `t = sqrt(n) D / sd(y)` under
an effect `D / sd` drawn from the positive half of N(0, g) against no effect. By Ville's inequality it ever reaches
`1 / error` with probability `error` at most while D <= 0.

That is exact for Gaussian y and asymptotic otherwise, in the sense of Waudby-Smith et al. ("Time-uniform central
limit theory and asymptotic confidence sequences", Annals of Statistics 52, 2024). Skewed ranks would make a rival
look too good early on, hence two safeguards: no verdict before `MIN_PROBLEMS` problems, and t is lowered by the
skewness correction of Hall (1992, JRSS-B 54) wherever that lowers it.
"""

import numpy as np
from scipy.special import stdtr


MIN_PROBLEMS = 20
EFFECT_VARIANCE = 0.1  # g: effects of 0.1 to 0.6 standard deviations a problem, as between the paper's teachers


def log_evidence(
    better: tuple[np.ndarray, np.ndarray], worse: tuple[np.ndarray, np.ndarray], min_problems: int = MIN_PROBLEMS
) -> np.ndarray:
    """
    Logarithm of the e-process for "the RSR of `better` is lower than that of `worse`", for many pairs at once.

    Args:
        better, worse (pairs of float arrays of shape `(problems, pairs)`): Sums of mean clipped ranks and of mean
            surprisals (nats) by problem, `nan` where a teacher has no score. A pair is compared on the problems that
            both have.
        min_problems (`int`, *optional*, defaults to `20`): Common problems below which there is no evidence.

    Returns:
        float array of shape `(pairs,)`; `-inf` where there is no evidence.
    """
    both = np.isfinite(np.stack([*better, *worse])).all(axis=0)
    count = both.sum(axis=0)
    parts = [np.where(both, part, 0.0) for part in (*better, *worse)]
    with np.errstate(divide="ignore", invalid="ignore"):
        means = [part.sum(axis=0) / count for part in parts]
        scaled = [part / mean for part, mean in zip(parts, means, strict=True)]
        difference = np.log(means[2] / means[3]) - np.log(means[0] / means[1])
        spread = (scaled[2] - scaled[3]) - (scaled[0] - scaled[1])
        deviation = np.sqrt((spread**2).sum(axis=0) / (count - 1))
        skewness = (spread**3).sum(axis=0) / count / deviation**3
        t = np.sqrt(count) * difference / deviation
        t = np.minimum(t, _without_skewness(t, skewness, count))
        t = np.where(deviation < 1e-12, np.sign(difference) * (np.abs(difference) > 1e-12) * 1e6, t)
    usable = (count >= max(2, min_problems)) & (t > 0)
    log_e = np.full(len(count), -np.inf)
    log_e[usable] = log_e_value(t[usable], count[usable])
    return log_e


def log_e_value(t: np.ndarray, count: np.ndarray, effect_variance: float = EFFECT_VARIANCE) -> np.ndarray:
    """
    Logarithm of the one-sided e-value of a t statistic: Bayes factor of an effect drawn from the positive half of
    `N(0, effect_variance)` against none, with the scale integrated out.

    Args:
        t (float array): t statistics.
        count (int array of the same shape): Observations behind each, 2 or more.
        effect_variance (`float`, *optional*, defaults to `0.1`): g.
    """
    freedom, growth = count - 1, 1 + count * effect_variance
    two_sided = -0.5 * np.log(growth) + 0.5 * count * (np.log1p(t**2 / freedom) - np.log1p(t**2 / (freedom * growth)))
    # Chance that the effect is positive given the data, over 1/2, its chance before.
    scale = np.sqrt(count * effect_variance / growth * count / (freedom + t**2 / growth))
    positive = np.maximum(stdtr(count, t * scale), np.finfo(float).tiny)
    return two_sided + np.log(2 * positive)


def _without_skewness(t: np.ndarray, skewness: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Hall's monotone cubic transformation of a t statistic of skewed observations."""
    a = skewness / np.sqrt(count)
    return t + a * t**2 / 3 + a**2 * t**3 / 27 + a / 6
