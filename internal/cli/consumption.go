package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/sdk"
)

// spans are the granularities of --by, and how long back each is shown.
var spans = map[string]struct {
	granularity string
	layout      string
	back        func(now time.Time) time.Time
}{
	"hour":  {"hourly", "2006-01-02 15:04", func(now time.Time) time.Time { return now.Add(-24 * time.Hour) }},
	"day":   {"daily", time.DateOnly, func(now time.Time) time.Time { return now.AddDate(0, 0, -30) }},
	"month": {"monthly", "2006-01", func(now time.Time) time.Time { return now.AddDate(0, -11, 0) }},
}

func (a *app) consumptionCmd() *cobra.Command {
	var by string
	c := &cobra.Command{Use: "consumption [project] [flags]", Aliases: []string{"usage"}, Short: "Show what a project has used",
		Long: "Show what a project has used: how long its computes ran, the same times their size, what was written (WAL), and what it\n" +
			"stores. Times are in UTC. The last 24 hours, 30 days or 12 months are shown.",
		Example: "  bough consumption\n  bough consumption shop --by hour\n  bough consumption --by month -o json"}
	c.Flags().StringVar(&by, "by", "day", "hour, day or month")
	return a.verb(a.projectFlag(c), cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		a.firstIsProject(args)
		span, ok := spans[by]
		if !ok {
			return usagef("--by is hour, day or month, not %q", by)
		}
		cl, id, err := a.project(ctx)
		if err != nil {
			return err
		}
		now := a.Now()
		list, err := sdk.All(cl.Consumption(ctx, sdk.ConsumptionFilter{
			ProjectIDs: []string{id}, From: span.back(now), To: now.Add(time.Second), Granularity: span.granularity,
		}))
		if err != nil {
			return err
		}
		frames := []sdk.ConsumptionFrame{}
		for _, p := range list {
			for _, period := range p.Periods {
				frames = append(frames, period.Consumption...)
			}
		}
		t := &table{header: []string{"FROM", "ACTIVE", "COMPUTE", "WRITTEN", "STORED"}, empty: "Nothing was used."}
		for _, f := range frames {
			t.add(f.TimeframeStart.UTC().Format(span.layout), duration(f.ActiveTimeSeconds), duration(f.ComputeTimeSeconds),
				bytesOf(f.WrittenDataBytes), bytesOf(f.SyntheticStorageSizeBytes))
		}
		return a.printTable(frames, t)
	})
}
