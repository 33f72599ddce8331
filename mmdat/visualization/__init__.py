from .attention import LayerAttention, record_attention
from .page import attention_page
from .picture import to_picture
from .sheets import attention_sheets, layer_names, save_sheets
from .view import View, position_to_pixel

__all__ = [
    'LayerAttention',
    'View',
    'attention_page',
    'attention_sheets',
    'layer_names',
    'position_to_pixel',
    'record_attention',
    'save_sheets',
    'to_picture',
]
