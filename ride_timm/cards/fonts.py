"""Fonts for names in any script: matplotlib's own has no letters of many of them."""

from functools import cache

__all__ = ['font_families']

_CANDIDATES = (
    'Noto Sans CJK JP', 'Noto Sans CJK SC', 'Noto Sans JP', 'Noto Sans SC', 'Noto Sans KR', 'Source Han Sans',
    'WenQuanYi Zen Hei', 'WenQuanYi Micro Hei', 'IPAGothic', 'Droid Sans Fallback', 'Hiragino Sans', 'PingFang SC',
    'Microsoft YaHei', 'Yu Gothic', 'Malgun Gothic', 'Apple SD Gothic Neo', 'Noto Sans Thai', 'Noto Sans Devanagari',
    'Arial Unicode MS', 'Nirmala UI', 'Leelawadee UI', 'Segoe UI Emoji',
)  # fmt: skip


@cache
def font_families() -> tuple[str, ...]:
    """Matplotlib's own font, and of those for further scripts the ones that are installed.

    A letter is taken from the first font that has it, so that all others look as ever. Needs matplotlib.
    """
    from matplotlib.font_manager import get_font_names

    installed = set(get_font_names())
    return ('DejaVu Sans', *(name for name in _CANDIDATES if name in installed))
