package cli

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/sdk"
)

const schemaNeeds = "It takes PostgreSQL's client program pg_dump on the server's machine, at least of the project's version.\n" +
	"A sleeping compute wakes for it."

// databaseFlag adds --database-name.
func databaseFlag(c *cobra.Command, database *string) {
	c.Flags().StringVar(database, "database-name", "", "database (default: the only one of the branch)")
}

// databaseOf finds the database that a verb is about.
func (a *app) databaseOf(ctx context.Context, cl *sdk.Client, b *sdk.Branch, want string) (string, error) {
	all, err := cl.Databases(ctx, b.ProjectID, b.ID)
	if err != nil {
		return "", err
	}
	d, err := pickDatabase(all, b, want)
	if err != nil {
		return "", err
	}
	return d.Name, nil
}

func (a *app) branchesSchema() *cobra.Command {
	var database string
	c := &cobra.Command{Use: "schema [branch] [flags]", Short: "Print the definitions of everything in a database, as SQL",
		Long:    "Print what pg_dump --schema-only says of a branch's database, the default branch's when none is named.\n" + schemaNeeds,
		Example: "  bough branches schema\n  bough branches schema try-index --database-name orders > orders.sql"}
	databaseFlag(c, &database)
	return a.verb(a.projectFlag(c), cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		cl, b, err := a.on(ctx, first(args))
		if err != nil {
			return err
		}
		if database, err = a.databaseOf(ctx, cl, b, database); err != nil {
			return err
		}
		sql, err := cl.Schema(ctx, b.ProjectID, b.ID, database)
		if err != nil {
			return err
		}
		return a.print(map[string]string{"sql": sql}, func(w io.Writer) error { return a.text(w, sql) })
	})
}

func (a *app) branchesSchemaDiff() *cobra.Command {
	var database string
	c := &cobra.Command{Use: "schema-diff [base] <branch> [flags]", Short: "Compare the schema of a branch with its parent's, or with another branch's",
		Long:    "Print a unified diff that leads from the schema of the base, the branch's parent when only one is named, to that of the branch.\n" + schemaNeeds,
		Example: "  bough branches schema-diff try-index\n  bough branches schema-diff main try-index --database-name orders"}
	databaseFlag(c, &database)
	return a.verb(a.projectFlag(c), cobra.RangeArgs(1, 2), func(ctx context.Context, args []string) error {
		for _, arg := range args {
			if arg == "" {
				return errEmptyBranch
			}
		}
		cl, b, err := a.on(ctx, args[len(args)-1])
		if err != nil {
			return err
		}
		q := sdk.SchemaComparison{}
		if len(args) == 2 {
			base, err := a.branch(ctx, cl, b.ProjectID, args[0])
			if err != nil {
				return err
			}
			q.BaseBranchID = base.ID
		} else if b.ParentID == nil {
			return usagef("branch %q has no parent; name the branch to compare it with: schema-diff <base> %s", b.Name, args[0])
		}
		if q.Database, err = a.databaseOf(ctx, cl, b, database); err != nil {
			return err
		}
		diff, err := cl.CompareSchemas(ctx, b.ProjectID, b.ID, q)
		if err != nil {
			return err
		}
		if diff == "" && a.output != "json" {
			a.note("The schemas of database %s are equal.", q.Database)
		}
		return a.print(map[string]string{"diff": diff}, func(w io.Writer) error { return a.text(w, diff) })
	})
}
