from .sampling_points import draw_sampling_points, position_to_pixel

__all__ = ['draw_sampling_points', 'position_to_pixel']
