"""From files to tensors: readers, preprocessing, cache, views, masks, layouts."""
