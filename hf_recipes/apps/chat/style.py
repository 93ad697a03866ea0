"""The style of the chat's page, and the script that saves a conversation."""

# For the page's head: Gradio prefixes the selectors of its css parameter.
STYLE = """<style>
footer { display: none !important; }
.gradio-container .main { max-width: 1500px !important; min-width: 0; width: 100%; margin: 0 auto; }
#head { align-items: center; flex-wrap: nowrap; }
#head h1 { margin: 0; white-space: nowrap; }
#language { flex: none; width: auto; min-width: 0 !important; }
#notes { color: var(--body-text-color-subdued); font-size: var(--text-sm); min-height: 1.5em; }
#notes * { padding: 0 !important; }
#notes .wrap { min-height: 1.5em; }
#notes .progress-text { transform: none; }
#buttons { gap: 8px; }
#buttons button { min-width: 72px; }
.chat { height: max(320px, calc(100dvh - 300px)) !important; }
.chat button[title="Clear"] { display: none; }
.chat .message { overflow-wrap: anywhere; contain: paint; }
.chat .placeholder { padding: 16px; text-align: center; }
@media (max-width: 640px) {
  .gradio-container .main { padding: 8px !important; }
  .gradio-container .column { min-width: 100% !important; max-width: 100%; }
  .chat { height: 45dvh !important; min-width: 100% !important; }
  #buttons button { min-width: 0; padding: 8px 4px; }
}
</style>"""
DOWNLOAD = """(text) => {
  if (!text) return;
  const link = document.createElement('a');
  link.href = URL.createObjectURL(new Blob([text], {type: 'application/jsonl'}));
  link.download = `chat-${new Date().toISOString().slice(0, 19).replaceAll(':', '')}.jsonl`;
  link.click();
  URL.revokeObjectURL(link.href);
}"""
