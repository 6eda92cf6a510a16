package cli

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// table is rows of cells under a header.
type table struct {
	header []string
	rows   [][]string
	empty  string // said on stderr when there are no rows
}

func (t *table) add(cells ...string) { t.rows = append(t.rows, cells) }

// fields is one thing, a line for each of its properties. Empty values are left out.
type fields [][2]string

func (f *fields) add(name, value string) {
	if value != "" {
		*f = append(*f, [2]string{name, value})
	}
}

// print writes v as JSON, or what human makes, by --output.
func (a *app) print(v any, human func(w io.Writer) error) error {
	if a.output == "json" {
		enc := json.NewEncoder(a.Out)
		enc.SetEscapeHTML(false)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	return human(a.Out)
}

func (a *app) printTable(v any, t *table) error {
	return a.print(v, func(w io.Writer) error {
		if len(t.rows) == 0 {
			fmt.Fprintln(a.Err, t.empty)
			return nil
		}
		return writeTable(w, append([][]string{t.header}, t.rows...))
	})
}

func (a *app) printFields(v any, f fields) error {
	return a.print(v, func(w io.Writer) error {
		rows := make([][]string, 0, len(f))
		for _, p := range f {
			rows = append(rows, []string{p[0] + ":", p[1]})
		}
		return writeTable(w, rows)
	})
}

// note tells people something beside the result; programs never see it on stdout.
func (a *app) note(format string, args ...any) {
	fmt.Fprintln(a.Err, printable(fmt.Sprintf(format, args...)))
}

// text writes lines that others have written: as they are, unless they go to a terminal.
func (a *app) text(w io.Writer, s string) error {
	if a.IsTTY(w) {
		s = printableLines(s)
	}
	_, err := io.WriteString(w, s)
	return err
}

func writeTable(w io.Writer, rows [][]string) error {
	var b strings.Builder
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, printable(cell))
		}
		fmt.Fprintln(tw)
	}
	if err := tw.Flush(); err != nil {
		return err
	}
	for line := range strings.Lines(b.String()) {
		if _, err := fmt.Fprintln(w, strings.TrimRight(line, " \n")); err != nil {
			return err
		}
	}
	return nil
}

// printable replaces what would move the cursor or break a table: names come from other users.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '�'
	}, s)
}

func printableLines(s string) string {
	return strings.Map(func(r rune) rune {
		if r == '\n' || r == '\t' || unicode.IsPrint(r) {
			return r
		}
		return '�'
	}, s)
}

// ago is a time relative to now, in the largest whole unit.
func (a *app) ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := a.Now().Sub(t)
	suffix := " ago"
	if d < 0 {
		d, suffix = -d, " from now"
	}
	for _, u := range []struct {
		size time.Duration
		name string
	}{{365 * 24 * time.Hour, "year"}, {30 * 24 * time.Hour, "month"}, {24 * time.Hour, "day"}, {time.Hour, "hour"},
		{time.Minute, "minute"}, {time.Second, "second"}} {
		if n := int(d / u.size); n > 0 {
			s := strconv.Itoa(n) + " " + u.name
			if n > 1 {
				s += "s"
			}
			return s + suffix
		}
	}
	return "now"
}

func (a *app) agoOpt(t *time.Time) string {
	if t == nil {
		return "never"
	}
	return a.ago(*t)
}

// when is for the view of one thing: the moment and how long ago.
func (a *app) when(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339) + " (" + a.ago(t) + ")"
}

func bytesOf(n int64) string {
	if n < 1024 {
		return strconv.FormatInt(n, 10) + " B"
	}
	v, units := float64(n), "KMGTPE"
	i := -1
	for v >= 1023.95 && i < len(units)-1 {
		v /= 1024
		i++
	}
	return strconv.FormatFloat(v, 'f', 1, 64) + " " + units[i:i+1] + "iB"
}

// duration is a count of seconds as people say it.
func duration(seconds int64) string {
	d := time.Duration(seconds) * time.Second
	if d >= 24*time.Hour && d%(24*time.Hour) == 0 {
		return strconv.Itoa(int(d/(24*time.Hour))) + "d"
	}
	s := d.String()
	s = strings.TrimSuffix(s, "m0s")
	if s != d.String() {
		s += "m"
		s = strings.TrimSuffix(s, "h0m")
		if !strings.HasSuffix(s, "m") {
			s += "h"
		}
	}
	return s
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

func deref[T any](p *T) T {
	if p == nil {
		return *new(T)
	}
	return *p
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}
