"""Budget rules: counts chosen from scores, or shared over groups. One file per rule."""
