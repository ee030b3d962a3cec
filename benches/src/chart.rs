//! A chart of two lines over one axis, each with a scale of its own, as an SVG.

use std::fmt::Write as _;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
/// Room for the scales at both sides, and above and below.
const SIDE: f64 = 80.0;
const ABOVE: f64 = 60.0;
const BELOW: f64 = 60.0;
/// About how many steps a scale has.
const STEPS: f64 = 6.0;

/// A line with its own vertical scale.
#[derive(Debug)]
pub(crate) struct Line<'a> {
    /// What is measured, and in what.
    pub(crate) label: &'a str,
    /// A colour as SVG names it.
    pub(crate) colour: &'a str,
    /// Horizontal and vertical position; none is negative.
    pub(crate) points: Vec<(f64, f64)>,
}

/// The chart: `left` has its scale at the left and `right` at the right. The horizontal scale begins at zero.
pub(crate) fn svg(title: &str, below: &str, left: &Line<'_>, right: &Line<'_>) -> String {
    let points = left.points.iter().chain(&right.points);
    let (across, across_step) = scale(points.map(|point| point.0));
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"white\"/>\n"
    );
    let middle = WIDTH / 2.0;
    text(&mut svg, (middle, 24.0), "middle", "black", title);
    text(&mut svg, (middle, HEIGHT - 16.0), "middle", "black", below);
    let horizontal = |value: f64| SIDE + value / across * (WIDTH - 2.0 * SIDE);
    for step in steps(across, across_step) {
        let x = horizontal(step);
        text(
            &mut svg,
            (x, HEIGHT - BELOW + 18.0),
            "middle",
            "black",
            &step.to_string(),
        );
    }
    for (line, edge, anchor, outwards) in [(left, SIDE, "end", -8.0), (right, WIDTH - SIDE, "start", 8.0)] {
        let (upwards, step) = scale(line.points.iter().map(|point| point.1));
        let vertical = |value: f64| HEIGHT - BELOW - value / upwards * (HEIGHT - ABOVE - BELOW);
        for value in steps(upwards, step) {
            let y = vertical(value);
            text(
                &mut svg,
                (edge + outwards, y + 4.0),
                anchor,
                line.colour,
                &value.to_string(),
            );
            if anchor == "end" {
                rule(&mut svg, (SIDE, y), (WIDTH - SIDE, y), "#dddddd");
            }
        }
        rule(&mut svg, (edge, ABOVE), (edge, HEIGHT - BELOW), line.colour);
        let own_side = if anchor == "end" { "start" } else { "end" };
        let outermost = if anchor == "end" { 16.0 } else { WIDTH - 16.0 };
        text(
            &mut svg,
            (outermost, ABOVE - 14.0),
            own_side,
            line.colour,
            line.label,
        );
        let drawn: Vec<String> = line
            .points
            .iter()
            .map(|(x, y)| format!("{:.1},{:.1}", horizontal(*x), vertical(*y)))
            .collect();
        // Nothing fails that writes to a string.
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{}\" stroke-width=\"2\"/>",
            drawn.join(" "),
            line.colour
        );
    }
    rule(
        &mut svg,
        (SIDE, HEIGHT - BELOW),
        (WIDTH - SIDE, HEIGHT - BELOW),
        "black",
    );
    svg.push_str("</svg>\n");
    svg
}

fn text(svg: &mut String, (x, y): (f64, f64), anchor: &str, colour: &str, text: &str) {
    let text = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" fill=\"{colour}\">{text}</text>"
    );
}

fn rule(svg: &mut String, (x1, y1): (f64, f64), (x2, y2): (f64, f64), colour: &str) {
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{colour}\"/>"
    );
}

/// The end of a scale from zero that holds the values, and its step: one, two or five with zeros behind it.
fn scale(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let largest = values.fold(0.0, f64::max).max(1.0);
    let magnitude = 10f64.powf((largest / STEPS).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|factor| factor * magnitude)
        .into_iter()
        .find(|step| largest / step <= STEPS)
        .unwrap_or(largest);
    ((largest / step).ceil() * step, step)
}

fn steps(end: f64, step: f64) -> impl Iterator<Item = f64> {
    let count = (end / step).round() as u32;
    (0..=count).map(move |number| f64::from(number) * step)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_holds_the_largest_value_in_few_round_steps() {
        assert_eq!(scale([500.0].into_iter()), (500.0, 100.0));
        assert_eq!(scale([3.0, 1730.0].into_iter()), (2000.0, 500.0));
        assert_eq!(scale([0.0].into_iter()), (1.0, 0.2));
    }

    #[test]
    fn the_first_and_the_last_point_are_in_the_corners_of_the_axes() {
        let line = |colour| Line {
            label: "MiB < all",
            colour,
            points: vec![(0.0, 0.0), (100.0, 50.0)],
        };
        let chart = svg("title", "below", &line("blue"), &line("red"));
        assert_eq!(
            chart.matches("points=\"80.0,340.0 640.0,60.0\"").count(),
            2,
            "{chart}"
        );
        assert!(chart.contains("MiB &lt; all"), "{chart}");
    }
}
