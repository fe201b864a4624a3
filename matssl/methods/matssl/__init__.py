"""MatSSL: SimCLR on gated features of all stages."""
