"""Many fits of one question, with Ray Tune. A sweep is submitted and recorded as a job."""
