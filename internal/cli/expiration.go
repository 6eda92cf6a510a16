package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

// past reads a moment in the past.
func (a *app) past(what, v string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, v); err == nil {
		return t, nil
	}
	if n, err := seconds(what, v); err == nil && n != nil && *n > 0 {
		return a.Now().Add(-time.Duration(*n) * time.Second).UTC(), nil
	}
	return time.Time{}, usagef("%s is a time with its zone such as 2031-03-20T18:00:00Z, how long ago such as 10m or 7d, or an LSN such as 0/1A7F730, not %q", what, v)
}

// moment reads a time such as 2031-03-20T18:00:00Z, or how long from now: 90m, 24h, 7d.
func (a *app) moment(what, v string) (time.Time, error) {
	if t, err := time.Parse(time.RFC3339, v); err == nil {
		return t, nil
	}
	if n, err := seconds(what, v); err == nil && n != nil && *n > 0 {
		return a.Now().Add(time.Duration(*n) * time.Second).UTC().Truncate(time.Second), nil
	}
	return time.Time{}, usagef("%s is a time with its zone such as 2031-03-20T18:00:00Z, or how long from now such as 24h or 7d, not %q", what, v)
}

func (a *app) branchesSetExpiration() *cobra.Command {
	var at string
	c := &cobra.Command{Use: "set-expiration <branch> [flags]", Short: "Say when a branch is deleted by itself, or that it stays",
		Long: "Set when a branch, its computes and its data are deleted: at most 30 days ahead. Without --expires-at the branch stays.\n" +
			"Default, root and protected branches and parents cannot expire.",
		Example: "  bough branches set-expiration try-index --expires-at 24h\n" +
			"  bough branches set-expiration try-index --expires-at 2031-03-20T18:00:00Z\n  bough branches set-expiration try-index"}
	c.Flags().StringVar(&at, "expires-at", "", "when: 2031-03-20T18:00:00Z, or how long from now: 24h, 7d")
	return a.verb(a.projectFlag(c), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if args[0] == "" {
			return errEmptyBranch
		}
		u := sdk.BranchUpdate{ExpiresAt: api.NullableTime{Set: true}}
		if at != "" || c.Flags().Changed("expires-at") {
			t, err := a.moment("--expires-at", at)
			if err != nil {
				return err
			}
			u.ExpiresAt.Time = &t
		}
		cl, b, err := a.on(ctx, args[0])
		if err != nil {
			return err
		}
		out, err := cl.UpdateBranch(ctx, b.ProjectID, b.ID, u)
		if err != nil {
			return err
		}
		return a.printFields(out, a.branchFields(&out.Branch))
	})
}
