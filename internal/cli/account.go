package cli

import (
	"context"
	"fmt"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/boughdb/bough/sdk"
)

func (a *app) meCmd() *cobra.Command {
	c := &cobra.Command{Use: "me [flags]", Short: "Show whom the API key belongs to", Example: "  bough me\n  bough me -o json | jq -r .id"}
	return a.verb(c, cobra.NoArgs, func(ctx context.Context, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		me, err := cl.Me(ctx)
		if err != nil {
			return err
		}
		var f fields
		f.add("Id", me.ID)
		f.add("Name", strings.TrimSpace(me.Name+" "+me.LastName))
		f.add("Login", me.Login)
		f.add("Email", me.Email)
		f.add("API", a.conn.url+" ("+a.conn.urlFrom+")")
		return a.printFields(me, f)
	})
}

func (a *app) keysCmd() *cobra.Command {
	return group("keys", "List, create and revoke your API keys",
		"API keys of the calling user; with --org-id, of an organization and its projects. The secret of a key is shown once, when\n"+
			"it is made.", []string{"key", "api-keys"},
		a.keysList(), a.keysCreate(), a.keysRevoke())
}

func (a *app) keysList() *cobra.Command {
	c := &cobra.Command{Use: "list [flags]", Aliases: []string{"ls"}, Short: "List your API keys, or an organization's, without their secrets",
		Example: "  bough keys list\n  bough keys list --org-id acme"}
	return a.verb(a.keysOrgFlag(c), cobra.NoArgs, func(ctx context.Context, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		if a.orgID != "" {
			return a.orgKeysList(ctx)
		}
		all, err := cl.APIKeys(ctx)
		if err != nil {
			return err
		}
		t := &table{header: []string{"ID", "NAME", "LAST USED", "FROM", "CREATED"}, empty: "No keys."}
		for _, k := range all {
			t.add(strconv.FormatInt(k.ID, 10), k.Name, a.agoOpt(k.LastUsedAt), orDash(k.LastUsedFromAddr), a.ago(k.CreatedAt))
		}
		return a.printTable(all, t)
	})
}

func (a *app) keysCreate() *cobra.Command {
	var name string
	c := &cobra.Command{Use: "create [name] [flags]", Short: "Make an API key; its secret is shown this once",
		Long: "Make an API key. A personal key may do what you may. A key of an organization (--org-id) works in all of its projects and\n" +
			"outlives who made it; one of a project (--project-id) works in that project only.",
		Example: "  bough keys create ci\n  bough keys create --name ci -o json | jq -r .key\n  bough keys create ci --org-id acme\n  bough keys create ci --project-id shop"}
	c.Flags().StringVar(&name, "name", "", "name")
	c.Flags().StringVar(&a.projectID, "project-id", "", "make a key that works in this project only, by id or name")
	return a.verb(a.keysOrgFlag(c), cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		name, err := oneName(args, name, "name for the key", true)
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		var made any
		var f fields
		if a.orgID != "" || a.projectID != "" {
			k, err := a.createOrgKey(ctx, cl, name)
			if err != nil {
				return err
			}
			made = k
			f.add("Id", strconv.FormatInt(k.ID, 10))
			f.add("Name", k.Name)
			f.add("Project", deref(k.ProjectID))
			f.add("Key", k.Key)
		} else {
			k, err := cl.CreateAPIKey(ctx, name)
			if err != nil {
				return err
			}
			made = k
			f.add("Id", strconv.FormatInt(k.ID, 10))
			f.add("Name", k.Name)
			f.add("Key", k.Key)
		}
		if err := a.printFields(made, f); err != nil {
			return err
		}
		if a.output != "json" {
			a.note("Keep the key now: it cannot be shown again.")
		}
		return nil
	})
}

func (a *app) keysRevoke() *cobra.Command {
	c := &cobra.Command{Use: "revoke <key id or name> [flags]", Aliases: []string{"delete", "rm"}, Short: "Make an API key stop working at once",
		Example: "  bough keys revoke ci\n  bough keys revoke 1234567 --yes\n  bough keys revoke ci --org-id acme"}
	return a.verb(a.yesFlag(a.keysOrgFlag(c)), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		var all []namedKey
		org := ""
		if a.orgID != "" {
			var keys []sdk.OrgAPIKey
			if cl, org, err = a.org(ctx); err == nil {
				keys, err = cl.OrgAPIKeys(ctx, org)
			}
			for _, k := range keys {
				all = append(all, namedKey{k.ID, k.Name})
			}
		} else {
			var keys []sdk.APIKey
			keys, err = cl.APIKeys(ctx)
			for _, k := range keys {
				all = append(all, namedKey{k.ID, k.Name})
			}
		}
		if err != nil {
			return err
		}
		key, err := findKey(all, args[0])
		if err != nil {
			return err
		}
		if err := a.confirm("Revoke key %s (%d)? Whoever uses it loses access at once.", key.Name, key.ID); err != nil {
			return err
		}
		var out any
		if org != "" {
			out, err = cl.RevokeOrgAPIKey(ctx, org, key.ID)
		} else {
			out, err = cl.RevokeAPIKey(ctx, key.ID)
		}
		if err != nil {
			return err
		}
		return a.done(out, "Revoked key %s (%d)", key.Name, key.ID)
	})
}

// keysOrgFlag is orgFlag where the default is the calling user.
func (a *app) keysOrgFlag(c *cobra.Command) *cobra.Command {
	c.Flags().StringVar(&a.orgID, "org-id", "", "keys of this organization, by id, name or handle (default: your own keys)")
	return c
}

func (a *app) orgKeysList(ctx context.Context) error {
	cl, org, err := a.org(ctx)
	if err != nil {
		return err
	}
	all, err := cl.OrgAPIKeys(ctx, org)
	if err != nil {
		return err
	}
	t := &table{header: []string{"ID", "NAME", "PROJECT", "MADE BY", "LAST USED", "FROM", "CREATED"}, empty: "No keys."}
	for _, k := range all {
		t.add(strconv.FormatInt(k.ID, 10), k.Name, orDash(deref(k.ProjectID)), orDash(k.CreatedBy.Name), a.agoOpt(k.LastUsedAt),
			orDash(k.LastUsedFromAddr), a.ago(k.CreatedAt))
	}
	return a.printTable(all, t)
}

// createOrgKey makes a key of the organization that --org-id names, or of the project of --project-id.
func (a *app) createOrgKey(ctx context.Context, cl *sdk.Client, name string) (*sdk.OrgAPIKeyCreated, error) {
	org, project := "", ""
	if a.projectID != "" {
		id, err := a.findProject(ctx, cl, a.projectID)
		if err != nil {
			return nil, err
		}
		p, err := cl.Project(ctx, id)
		if err != nil {
			return nil, err
		}
		org, project = deref(p.OrgID), id
	}
	if a.orgID != "" {
		var err error
		if org, err = findOrg(ctx, cl, a.orgID); err != nil {
			return nil, err
		}
	}
	return cl.CreateOrgAPIKey(ctx, org, name, project)
}

// namedKey is a key of a user or of an organization.
type namedKey struct {
	ID   int64
	Name string
}

// findKey takes an id, or a name that only one key has.
func findKey(all []namedKey, want string) (*namedKey, error) {
	var names []string
	var hits []*namedKey
	for i, k := range all {
		if strconv.FormatInt(k.ID, 10) == want {
			return &all[i], nil
		}
		names = append(names, k.Name)
		if k.Name == want {
			hits = append(hits, &all[i])
		}
	}
	switch len(hits) {
	case 1:
		return hits[0], nil
	case 0:
		return nil, fmt.Errorf("there is no key %q%s", want, didYouMean(want, names, "; see bough keys list"))
	}
	return nil, usagef("%d keys are named %q, use the id of one; see bough keys list", len(hits), want)
}
