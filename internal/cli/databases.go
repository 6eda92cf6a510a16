package cli

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/sdk"
)

func (a *app) databasesCmd() *cobra.Command {
	return group("databases", "List, create, change and delete databases", "The databases of a branch.", []string{"database", "db"},
		a.databasesList(), a.databasesCreate(), a.databasesGet(), a.databasesUpdate(), a.databasesDelete())
}

// branchFlags adds --project-id and --branch.
func (a *app) branchFlags(c *cobra.Command, branch *string) *cobra.Command {
	c.Flags().StringVar(branch, "branch", "", "branch, by name or id (default: the default branch)")
	return a.projectFlag(c)
}

func (a *app) databaseFields(d *sdk.Database) fields {
	var f fields
	f.add("Name", d.Name)
	f.add("Owner", d.OwnerName)
	f.add("Branch", d.BranchID)
	f.add("Created", a.when(d.CreatedAt))
	return f
}

func (a *app) databasesList() *cobra.Command {
	var branch string
	c := &cobra.Command{Use: "list [flags]", Aliases: []string{"ls"}, Short: "List the databases of a branch",
		Example: "  bough databases list\n  bough databases list --branch try-index -o json"}
	return a.verb(a.branchFlags(c, &branch), cobra.NoArgs, func(ctx context.Context, _ []string) error {
		cl, b, err := a.on(ctx, branch)
		if err != nil {
			return err
		}
		all, err := cl.Databases(ctx, b.ProjectID, b.ID)
		if err != nil {
			return err
		}
		t := &table{header: []string{"NAME", "OWNER", "CREATED"}, empty: "No databases."}
		for _, d := range all {
			t.add(d.Name, d.OwnerName, a.ago(d.CreatedAt))
		}
		return a.printTable(all, t)
	})
}

func (a *app) databasesGet() *cobra.Command {
	var branch string
	c := &cobra.Command{Use: "get <database> [flags]", Aliases: []string{"show"}, Short: "Show one database",
		Example: "  bough databases get neondb"}
	return a.verb(a.branchFlags(c, &branch), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		cl, b, err := a.on(ctx, branch)
		if err != nil {
			return err
		}
		d, err := cl.Database(ctx, b.ProjectID, b.ID, args[0])
		if err != nil {
			return a.noDatabase(ctx, cl, b, args[0], err)
		}
		return a.printFields(d, a.databaseFields(d))
	})
}

// noDatabase adds similar names to a 404.
func (a *app) noDatabase(ctx context.Context, cl *sdk.Client, b *sdk.Branch, name string, err error) error {
	if !sdk.IsNotFound(err) {
		return err
	}
	all, listErr := cl.Databases(ctx, b.ProjectID, b.ID)
	if listErr != nil {
		return err
	}
	var names []string
	for _, d := range all {
		names = append(names, d.Name)
	}
	return fmt.Errorf("%w%s", err, didYouMean(name, names, "; the branch "+has(names)[len("it "):]))
}

func (a *app) databasesCreate() *cobra.Command {
	var branch, name, owner string
	c := &cobra.Command{Use: "create [name] [flags]", Short: "Make a database",
		Example: "  bough databases create orders\n  bough databases create --name orders --owner-name app --branch try-index"}
	c.Flags().StringVar(&name, "name", "", "name")
	c.Flags().StringVar(&owner, "owner-name", "", "role that owns it (default: the only role of the branch)")
	return a.verb(a.waitFlag(a.branchFlags(c, &branch)), cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		name, err := oneName(args, name, "name for the database", true)
		if err != nil {
			return err
		}
		cl, b, err := a.on(ctx, branch)
		if err != nil {
			return err
		}
		if owner == "" {
			if owner, err = a.onlyRole(ctx, cl, b, "--owner-name"); err != nil {
				return err
			}
		}
		out, err := cl.CreateDatabase(ctx, b.ProjectID, b.ID, sdk.DatabaseCreate{Name: name, OwnerName: owner})
		if err != nil {
			return err
		}
		return a.databaseDone(ctx, cl, out)
	})
}

func (a *app) databaseDone(ctx context.Context, cl *sdk.Client, out *sdk.DatabaseOperations) error {
	var err error
	if out.Operations, err = a.wait(ctx, cl, out.Operations); err != nil {
		return err
	}
	return a.printFields(out, a.databaseFields(&out.Database))
}

func (a *app) databasesUpdate() *cobra.Command {
	var branch, name, owner string
	c := &cobra.Command{Use: "update <database> [flags]", Short: "Rename a database, or give it another owner",
		Long:    "Change a database. A new name ends the sessions in it.",
		Example: "  bough databases update orders --name sales\n  bough databases update orders --owner-name app"}
	c.Flags().StringVar(&name, "name", "", "new name")
	c.Flags().StringVar(&owner, "owner-name", "", "role that owns it from now on")
	return a.verb(a.waitFlag(a.branchFlags(c, &branch)), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		if name == "" && owner == "" {
			return usagef("nothing to change: give --name or --owner-name")
		}
		cl, b, err := a.on(ctx, branch)
		if err != nil {
			return err
		}
		out, err := cl.UpdateDatabase(ctx, b.ProjectID, b.ID, args[0], sdk.DatabaseUpdate{Name: opt(name), OwnerName: opt(owner)})
		if err != nil {
			return a.noDatabase(ctx, cl, b, args[0], err)
		}
		return a.databaseDone(ctx, cl, out)
	})
}

func (a *app) databasesDelete() *cobra.Command {
	var branch string
	c := &cobra.Command{Use: "delete <database> [flags]", Aliases: []string{"rm"}, Short: "Drop a database and end its sessions",
		Example: "  bough databases delete orders --branch try-index --yes"}
	return a.verb(a.yesFlag(a.waitFlag(a.branchFlags(c, &branch))), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		cl, b, err := a.on(ctx, branch)
		if err != nil {
			return err
		}
		// A delete of what is missing answers 204, which would hide a typo.
		d, err := cl.Database(ctx, b.ProjectID, b.ID, args[0])
		if err != nil {
			return a.noDatabase(ctx, cl, b, args[0], err)
		}
		if err := a.confirm("Delete database %s of branch %s with its data?", d.Name, b.Name); err != nil {
			return err
		}
		out, err := cl.DeleteDatabase(ctx, b.ProjectID, b.ID, d.Name)
		if err != nil {
			return err
		}
		if out.Database.Name == "" { // gone in the meantime
			out.Database, out.Operations = *d, []sdk.Operation{}
		}
		if out.Operations, err = a.wait(ctx, cl, out.Operations); err != nil {
			return err
		}
		return a.deleted(out, "database "+d.Name+" of branch "+b.Name)
	})
}
