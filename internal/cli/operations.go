package cli

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/sdk"
)

func (a *app) operationsCmd() *cobra.Command {
	return group("operations", "See what the server works on",
		"An operation is a piece of work that goes on after the call that asked for it returned.", []string{"operation", "ops"},
		a.operationsList(), a.operationsGet())
}

func subject(op *sdk.Operation) string {
	if op.EndpointID != nil {
		return *op.EndpointID
	}
	return deref(op.BranchID)
}

func took(op *sdk.Operation) string {
	if !sdk.Done(*op) {
		return "-"
	}
	return (time.Duration(op.TotalDurationMs) * time.Millisecond).String()
}

func (a *app) operationsList() *cobra.Command {
	var limit int
	c := &cobra.Command{Use: "list [flags]", Aliases: []string{"ls"}, Short: "List a project's operations, newest first",
		Example: "  bough operations list\n  bough operations list --limit 100 -o json"}
	c.Flags().IntVar(&limit, "limit", 20, "how many to show; 0 shows all")
	return a.verb(a.projectFlag(c), cobra.NoArgs, func(ctx context.Context, _ []string) error {
		if limit < 0 {
			return usagef("--limit is 0 or more, not %d", limit)
		}
		cl, projectID, err := a.project(ctx)
		if err != nil {
			return err
		}
		ops, more := []sdk.Operation{}, false
		f := sdk.OperationFilter{}
		if limit > 0 {
			f.PageSize = min(limit+1, 1000) // one more tells whether there are more
		}
		for op, err := range cl.Operations(ctx, projectID, f) {
			if err != nil {
				return err
			}
			if more = limit > 0 && len(ops) == limit; more {
				break
			}
			ops = append(ops, op)
		}
		t := &table{header: []string{"ID", "ACTION", "STATUS", "OF", "TOOK", "BEGUN", "ERROR"}, empty: "No operations."}
		failures := false
		for _, op := range ops {
			t.add(op.ID, string(op.Action), string(op.Status), orDash(subject(&op)), took(&op), a.ago(op.CreatedAt), deref(op.Error))
			failures = failures || deref(op.Error) != ""
		}
		if !failures {
			t.header = t.header[:6]
		}
		if err := a.printTable(ops, t); err != nil {
			return err
		}
		if more {
			a.note("There are older ones; --limit 0 shows all.")
		}
		return nil
	})
}

func (a *app) operationsGet() *cobra.Command {
	c := &cobra.Command{Use: "get <operation id> [flags]", Aliases: []string{"show"}, Short: "Show where an operation stands",
		Example: "  bough operations get 74bde94f-b78c-8d5f-08b7-9affd2b49c12"}
	return a.verb(a.projectFlag(c), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		cl, projectID, err := a.project(ctx)
		if err != nil {
			return err
		}
		op, err := cl.GetOperation(ctx, projectID, args[0])
		if err != nil {
			return err
		}
		var f fields
		f.add("Id", op.ID)
		f.add("Action", string(op.Action))
		f.add("Status", string(op.Status))
		f.add("Error", deref(op.Error))
		f.add("Branch", deref(op.BranchID))
		f.add("Endpoint", deref(op.EndpointID))
		if op.FailuresCount > 0 {
			f.add("Failed attempts", strconv.Itoa(int(op.FailuresCount)))
		}
		if sdk.Done(*op) {
			f.add("Took", took(op))
		}
		f.add("Begun", a.when(op.CreatedAt))
		return a.printFields(op, f)
	})
}
