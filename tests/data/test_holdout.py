"""What `holdout_share` promises: a split that is a function of the text."""

from mini_chat.data.holdout import holdout_share


def test_holdout_is_nested_near_its_share_and_blind_to_case_and_space() -> None:
    keys = [f"Text number {i}" for i in range(20_000)]
    small = {key for key in keys if holdout_share(key, 0.01)}
    large = {key for key in keys if holdout_share(key, 0.05)}
    assert small < large
    assert 150 < len(small) < 250
    assert 900 < len(large) < 1100
    assert all(holdout_share(f"  {key.upper()}\n", 0.01) for key in small)
    assert not any(holdout_share(key, 0.0) for key in keys)
    assert all(holdout_share(key, 1.0) for key in keys)


def test_holdout_never_moves() -> None:
    """Written down once: were the hash to change, what was held out would leak into training."""
    assert [i for i in range(300) if holdout_share(f"文档 {i}", 0.02)] == [15, 148, 151, 218]
