"""The page in the browser: from a folder of micrographs to a measured table, and by HTTP."""
