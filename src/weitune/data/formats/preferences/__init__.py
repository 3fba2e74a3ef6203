"""From a row to a pair of answers, or to one that was liked or not."""
