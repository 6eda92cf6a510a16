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

func (a *app) orgsCmd() *cobra.Command {
	c := &cobra.Command{Use: "list [flags]", Aliases: []string{"ls"}, Short: "List your organizations", Example: "  bough orgs list"}
	return group("orgs", "List your organizations", "Organizations own projects.", []string{"org"},
		a.verb(c, cobra.NoArgs, func(ctx context.Context, _ []string) error {
			cl, err := a.client()
			if err != nil {
				return err
			}
			all, err := cl.Organizations(ctx)
			if err != nil {
				return err
			}
			t := &table{header: []string{"ID", "NAME", "HANDLE", "CREATED"}, empty: "No organizations."}
			for _, o := range all {
				t.add(o.ID, o.Name, o.Handle, a.ago(o.CreatedAt))
			}
			return a.printTable(all, t)
		}))
}

func (a *app) keysCmd() *cobra.Command {
	return group("keys", "List, create and revoke your API keys",
		"API keys of the calling user. The secret of a key is shown once, when it is made.", []string{"key", "api-keys"},
		a.keysList(), a.keysCreate(), a.keysRevoke())
}

func (a *app) keysList() *cobra.Command {
	c := &cobra.Command{Use: "list [flags]", Aliases: []string{"ls"}, Short: "List your API keys, without their secrets", Example: "  bough keys list"}
	return a.verb(c, cobra.NoArgs, func(ctx context.Context, _ []string) error {
		cl, err := a.client()
		if err != nil {
			return err
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
		Example: "  bough keys create ci\n  bough keys create --name ci -o json | jq -r .key"}
	c.Flags().StringVar(&name, "name", "", "name")
	return a.verb(c, cobra.MaximumNArgs(1), func(ctx context.Context, args []string) error {
		name, err := oneName(args, name, "name for the key", true)
		if err != nil {
			return err
		}
		cl, err := a.client()
		if err != nil {
			return err
		}
		k, err := cl.CreateAPIKey(ctx, name)
		if err != nil {
			return err
		}
		var f fields
		f.add("Id", strconv.FormatInt(k.ID, 10))
		f.add("Name", k.Name)
		f.add("Key", k.Key)
		if err := a.printFields(k, f); err != nil {
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
		Example: "  bough keys revoke ci\n  bough keys revoke 1234567 --yes"}
	return a.verb(a.yesFlag(c), cobra.ExactArgs(1), func(ctx context.Context, args []string) error {
		cl, err := a.client()
		if err != nil {
			return err
		}
		all, err := cl.APIKeys(ctx)
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
		out, err := cl.RevokeAPIKey(ctx, key.ID)
		if err != nil {
			return err
		}
		if a.output == "json" {
			return a.print(out, nil)
		}
		_, err = fmt.Fprintf(a.Out, "Revoked key %s (%d)\n", printable(key.Name), key.ID)
		return err
	})
}

// findKey takes an id, or a name that only one key has.
func findKey(all []sdk.APIKey, want string) (*sdk.APIKey, error) {
	var names []string
	var hits []*sdk.APIKey
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
