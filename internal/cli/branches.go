package cli

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/sdk"
)

func (a *app) branchesCmd() *cobra.Command {
	return group("branches", "List, create, rename, compare and delete branches, or let them expire",
		"A branch is an isolated copy-on-write copy of the data. Branches are named by name or id.", []string{"branch"},
		a.branchesList(), a.branchesGet(), a.branchesCreate(), a.branchesRename(), a.branchesSetDefault(), a.branchesSetExpiration(),
		a.branchesSchema(), a.branchesSchemaDiff(), a.branchesDelete())
}

func (a *app) branchesList() *cobra.Command {
	c := &cobra.Command{Use: "list [flags]", Aliases: []string{"ls"}, Short: "List a project's branches",
		Example: "  bough branches list\n  bough branches list --project-id brisk-ember-81697531 -o json"}
	return a.verb(a.projectFlag(c), cobra.NoArgs, func(ctx context.Context, _ []string) error {
		cl, projectID, err := a.project(ctx)
		if err != nil {
			return err
		}
		all, err := sdk.All(cl.Branches(ctx, projectID, sdk.BranchFilter{}))
		if err != nil {
			return err
		}
		names := map[string]string{}
		for _, b := range all {
			names[b.ID] = b.Name
		}
		t := &table{header: []string{"NAME", "ID", "PARENT", "DEFAULT", "STATE", "SIZE", "CREATED"}, empty: "No branches."}
		for _, b := range all {
			t.add(b.Name, b.ID, orDash(parentOf(&b, names)), orDash(yes(b.Default)), state(&b), orDash(logicalSize(&b)),
				a.ago(b.CreatedAt))
		}
		return a.printTable(all, t)
	})
}

func parentOf(b *sdk.Branch, names map[string]string) string {
	id := deref(b.ParentID)
	if name := names[id]; name != "" {
		return name
	}
	return id
}

func state(b *sdk.Branch) string {
	if p := deref(b.PendingState); p != "" && p != b.CurrentState {
		return b.CurrentState + " → " + p
	}
	return b.CurrentState
}

func logicalSize(b *sdk.Branch) string {
	if b.LogicalSize == nil {
		return ""
	}
	return bytesOf(*b.LogicalSize)
}

func (a *app) branchFields(b *sdk.Branch) fields {
	var f fields
	f.add("Id", b.ID)
	f.add("Name", b.Name)
	f.add("Project", b.ProjectID)
	parent := deref(b.ParentID)
	if lsn := deref(b.ParentLSN); parent != "" && lsn != "" {
		parent += " at " + lsn
	}
	f.add("Parent", parent)
	f.add("Default", yes(b.Default))
	f.add("Protected", yes(b.Protected))
	f.add("State", state(b))
	f.add("Size", logicalSize(b))
	f.add("Created", a.when(b.CreatedAt))
	if b.ExpiresAt != nil {
		f.add("Expires", a.when(*b.ExpiresAt))
	}
	return f
}

func (a *app) branchesGet() *cobra.Command {
	c := &cobra.Command{Use: "get [branch] [flags]", Aliases: []string{"show"}, Short: "Show one branch, the default branch when none is named",
		Example: "  bough branches get try-index\n  bough branches get br-lunar-fjord-ry3xdxw8 -o json"}
	return a.verb(a.projectFlag(c), cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		cl, b, err := a.on(ctx, first(args))
		if err != nil {
			return err
		}
		out := a.branchFields(b)
		if a.output != "json" {
			endpoints, err := cl.BranchEndpoints(ctx, b.ProjectID, b.ID)
			if err != nil {
				return err
			}
			for _, e := range endpoints {
				out.add("Endpoint", e.ID+" ("+string(e.CurrentState)+")")
			}
		}
		return a.printFields(b, out)
	})
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

func (a *app) branchesCreate() *cobra.Command {
	var name, parent, expires, at string
	var noCompute, schemaOnly bool
	var compute computeFlags
	c := &cobra.Command{Use: "create [name] [flags]", Short: "Branch off another branch, now or as it was, with a compute",
		Long: "Make an isolated copy of a branch as it is now: it has everything that was committed on the parent before the call. With --at\n" +
			"it is the branch as it was, as far back as its project keeps history (bough projects update --history-retention): a time has\n" +
			"what was committed by then, an LSN what ends at or before it. With --schema-only it is a root branch with the parent's roles,\n" +
			"databases and definitions, and without a row.",
		Example: "  bough branches create try-index\n" +
			"  bough branches create before-the-mistake --at 10m\n" +
			"  bough branches create --at 2031-03-20T18:00:00Z\n" +
			"  bough branches create --at 0/1A7F730\n" +
			"  bough branches create --name try-index --parent staging --cu 1\n" +
			"  bough branches create ci-run --expires-at 2h\n" +
			"  bough branches create --schema-only clean --parent main\n" +
			"  bough branches create --no-compute -o json"}
	c.Flags().StringVar(&name, "name", "", "name (default: the id)")
	c.Flags().StringVar(&parent, "parent", "", "branch to copy, by name or id (default: the default branch)")
	c.Flags().StringVar(&at, "at", "", "moment of the parent: a time with its zone, how long ago such as 10m or 7d, or an LSN (default: now)")
	c.Flags().StringVar(&expires, "expires-at", "", "delete it by itself: at 2031-03-20T18:00:00Z, or after 24h or 7d (at most 30 days)")
	c.Flags().BoolVar(&noCompute, "no-compute", false, "do not add a compute")
	c.Flags().BoolVar(&schemaOnly, "schema-only", false, "copy definitions, roles and privileges, and no data")
	compute.add(c)
	return a.verb(a.waitFlag(a.projectFlag(c)), cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		name, err := oneName(args, name, "name", false)
		if err != nil {
			return err
		}
		low, high, suspend, err := compute.parse()
		if err != nil {
			return err
		}
		if noCompute && (low != nil || suspend != nil) {
			return usagef("--cu and --suspend-timeout are about a compute, --no-compute asks for none")
		}
		cl, projectID, err := a.project(ctx)
		if err != nil {
			return err
		}
		req := sdk.BranchCreateRequest{Branch: &sdk.BranchCreate{Name: opt(name)}}
		if expires != "" {
			t, err := a.moment("--expires-at", expires)
			if err != nil {
				return err
			}
			req.Branch.ExpiresAt = &t
		}
		if schemaOnly {
			req.Branch.InitSource = new("schema-only")
		}
		if strings.Contains(at, "/") {
			req.Branch.ParentLSN = &at
		} else if at != "" {
			t, err := a.past("--at", at)
			if err != nil {
				return err
			}
			req.Branch.ParentTimestamp = &t
		}
		if parent != "" {
			p, err := a.branch(ctx, cl, projectID, parent)
			if err != nil {
				return err
			}
			req.Branch.ParentID = &p.ID
		}
		if !noCompute {
			req.Endpoints = &[]sdk.BranchCreateEndpoint{{Type: api.ReadWrite, AutoscalingLimitMinCU: low,
				AutoscalingLimitMaxCU: high, SuspendTimeoutSeconds: suspend}}
		}
		made, err := cl.CreateBranch(ctx, projectID, req)
		if err != nil {
			return err
		}
		if made.Operations, err = a.wait(ctx, cl, made.Operations); err != nil {
			a.note("branch %s (%s) was created, but:", made.Branch.Name, made.Branch.ID)
			return err
		}
		if err := a.refresh(ctx, cl, &made.Branch, made.Endpoints); err != nil {
			return err
		}
		out := a.branchFields(&made.Branch)
		for _, e := range made.Endpoints {
			out.add("Endpoint", e.ID+" ("+string(e.CurrentState)+")")
		}
		for _, u := range deref(made.ConnectionUris) {
			out.add("Connection", u.ConnectionURI)
		}
		return a.printFields(made, out)
	})
}

func (a *app) branchesRename() *cobra.Command {
	c := &cobra.Command{Use: "rename <branch> <new name> [flags]", Short: "Give a branch another name",
		Example: "  bough branches rename try-index with-index"}
	return a.verb(a.waitFlag(a.projectFlag(c)), cobra.ExactArgs(2), func(ctx context.Context, args []string) error {
		if args[0] == "" || args[1] == "" {
			return usagef("a name is empty")
		}
		cl, b, err := a.on(ctx, args[0])
		if err != nil {
			return err
		}
		out, err := cl.UpdateBranch(ctx, b.ProjectID, b.ID, sdk.BranchUpdate{Name: &args[1]})
		if err != nil {
			return err
		}
		if out.Operations, err = a.wait(ctx, cl, out.Operations); err != nil {
			return err
		}
		return a.printFields(out, a.branchFields(&out.Branch))
	})
}

func (a *app) branchesSetDefault() *cobra.Command {
	c := &cobra.Command{Use: "set-default <branch> [flags]", Short: "Make a branch the project's default branch",
		Long:    "Make a branch the one that is meant where none is named: as a parent, in connection strings, in commands.",
		Example: "  bough branches set-default try-index"}
	return a.verb(a.projectFlag(c), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if args[0] == "" {
			return errEmptyBranch
		}
		cl, b, err := a.on(ctx, args[0])
		if err != nil {
			return err
		}
		out, err := cl.SetDefaultBranch(ctx, b.ProjectID, b.ID)
		if err != nil {
			return err
		}
		return a.printFields(out, a.branchFields(&out.Branch))
	})
}

func (a *app) branchesDelete() *cobra.Command {
	c := &cobra.Command{Use: "delete <branch> [flags]", Aliases: []string{"rm"}, Short: "Delete a branch that is neither the default nor a parent",
		Example: "  bough branches delete try-index\n  bough branches delete br-lunar-fjord-ry3xdxw8 --yes"}
	return a.verb(a.yesFlag(a.waitFlag(a.projectFlag(c))), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if args[0] == "" {
			return errEmptyBranch
		}
		cl, b, err := a.on(ctx, args[0])
		if err != nil {
			return err
		}
		if err := a.confirm("Delete branch %s (%s) of project %s?", b.Name, b.ID, b.ProjectID); err != nil {
			return err
		}
		out, err := cl.DeleteBranch(ctx, b.ProjectID, b.ID)
		if err != nil {
			return err
		}
		if out.Branch.ID == "" { // gone in the meantime
			out.Branch, out.Operations = *b, []sdk.Operation{}
		}
		if out.Operations, err = a.wait(ctx, cl, out.Operations); err != nil {
			return err
		}
		return a.deleted(out, "branch "+b.Name+" ("+b.ID+")")
	})
}

// errEmptyBranch keeps an unset shell variable from meaning the default branch.
var errEmptyBranch = usagef("the name of the branch is empty")
