// Command bench measures Bough side by side with what one would use otherwise, in one run, and prints a table with both raw
// figures and their ratio. It starts a server of its own in a temporary directory. Run it with: make bench
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"
)

// options are the flags.
type options struct {
	binary  string
	dir     string
	storage string
	rows    string
	rounds  int
	scale   int
	seconds int

	clients    int
	awake      int
	branches   int
	children   int
	childScale int

	backends   string
	smallScale int
	largeScale int
	updates    int
	depth      int
}

// row is one line of the table.
type row struct {
	what, ours, other, otherWhat, ratio, aim string
}

func main() {
	var o options
	flag.StringVar(&o.binary, "binary", "bin/bough", "the server")
	flag.StringVar(&o.dir, "dir", "", "where to work; default: a temporary directory")
	flag.StringVar(&o.storage, "storage", "auto", "storage backend")
	flag.StringVar(&o.rows, "rows", "wake,project,branch,load,oltp,idle", "what to measure; at scale: churn,storm,many,deletes,autoscale; replicas; moments; api; pool; alone, on servers of its own: size")
	flag.IntVar(&o.rounds, "rounds", 20, "how often each single call is measured")
	flag.IntVar(&o.scale, "scale", 10, "pgbench scale: 15 MB each")
	flag.IntVar(&o.seconds, "seconds", 10, "length of one pgbench run")
	flag.IntVar(&o.clients, "clients", 16, "callers side by side (churn, storm)")
	flag.IntVar(&o.awake, "awake", 100, "computes woken in one second (storm), awake (autoscale)")
	flag.IntVar(&o.branches, "branches", 1000, "branches in one project (many)")
	flag.IntVar(&o.children, "children", 500, "nested children that are deleted (deletes)")
	flag.IntVar(&o.childScale, "child-scale", 50, "pgbench scale of the deleted children's data (deletes)")
	flag.StringVar(&o.backends, "backends", "btrfs,reflink,copy", "storage backends (size); without root copy only")
	flag.IntVar(&o.smallScale, "small", 67, "pgbench scale of the smaller parent (size): 1 GB")
	flag.IntVar(&o.largeScale, "large", 670, "pgbench scale of the larger parent (size): 10 GB")
	flag.IntVar(&o.updates, "updates", 300, "seconds of random updates on each parent (size)")
	flag.IntVar(&o.depth, "depth", 100, "how deep the deepest parent is nested (size)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) (err error) {
	if o.rows == "size" {
		return sizes(ctx, o)
	}
	b, err := start(ctx, o)
	if err != nil {
		return err
	}
	defer b.stop()
	var rows []row
	for _, m := range []struct {
		name    string
		measure func(context.Context) ([]row, error)
	}{
		{"wake", b.wake}, {"project", b.project}, {"branch", b.branch}, {"load", b.branchUnderLoad}, {"oltp", b.oltp}, {"idle", b.idle},
		{"churn", b.churn}, {"storm", b.storm}, {"many", b.many}, {"deletes", b.deletes}, {"autoscale", b.autoscale}, {"replicas", b.replicas},
		{"moments", b.moments}, {"api", b.restAPI}, {"pool", b.pool},
	} {
		if !slices.Contains(strings.Split(o.rows, ","), m.name) {
			continue
		}
		fmt.Fprintf(os.Stderr, "measuring %s …\n", m.name)
		got, err := m.measure(ctx)
		if err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
		rows = append(rows, got...)
	}
	fmt.Printf("\nPostgreSQL %s, storage %s, %d rounds, pgbench scale %d, 8 clients, %d s\n\n", b.build.Version, b.storage, o.rounds, o.scale, o.seconds)
	return printRows(rows)
}

func printRows(rows []row) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "WHAT\tBOUGH\tOTHERWISE\t\tRATIO\tAIM")
	for _, r := range rows {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.what, r.ours, r.other, r.otherWhat, r.ratio, r.aim)
	}
	return w.Flush()
}

// series is a set of durations.
type series []time.Duration

func (s series) at(p float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	sorted := slices.Clone(s)
	slices.Sort(sorted)
	return sorted[min(len(sorted)-1, int(p*float64(len(sorted))))]
}

func (s series) String() string {
	return fmt.Sprintf("p50 %s  p99 %s", ms(s.at(0.5)), ms(s.at(0.99)))
}

func ms(d time.Duration) string {
	if d >= 10*time.Second {
		return fmt.Sprintf("%.1f s", d.Seconds())
	}
	return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000)
}

// ratio is ours over the other's median.
func ratio(ours, other series) string {
	if other.at(0.5) == 0 {
		return "–"
	}
	return fmt.Sprintf("%.2f ×", float64(ours.at(0.5))/float64(other.at(0.5)))
}
