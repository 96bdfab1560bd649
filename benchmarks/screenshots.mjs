// Pages in a browser, as `make screenshots` has them: 1280, 800 and 400 pixels wide, light and dark, and on
// A4; what axe-core finds, and what is wider than its window. Ends with 1 where something is wrong.
//
//   node benchmarks/screenshots.mjs OUT NAME=PAGE.html ...
import chromium from '@sparticuz/chromium';
import axe from 'axe-core';
import puppeteer from 'puppeteer-core';
import path from 'path';

const WIDTHS = [1280, 800, 400];
const SCHEMES = ['light', 'dark'];
const PART = 8000; // pixels of height a picture; what is beyond 16,384 would be drawn wrongly

// elements that reach over the right edge of the window and do not scroll by themselves
function tooWide() {
  const edge = document.documentElement.clientWidth + 1;
  const scrolls = (element) =>
    element !== document.body &&
    (['auto', 'scroll', 'hidden'].includes(getComputedStyle(element).overflowX) ||
      scrolls(element.parentElement));
  return [...document.querySelectorAll('body *')]
    .filter((e) => e.getBoundingClientRect().right > edge && !e.closest('svg *') && !scrolls(e))
    .map((e) => `${e.tagName} reaches ${Math.round(e.getBoundingClientRect().right)} pixels`);
}

const [out, ...pages] = process.argv.slice(2);
const browser = await puppeteer.launch({
  executablePath: process.env.CHROMIUM || (await chromium.executablePath()),
  args: [...chromium.args, '--no-sandbox', '--allow-file-access-from-files'],
  headless: 'shell',
});
let wrong = 0;
for (const given of pages) {
  const [name, file] = given.split('=');
  for (const scheme of SCHEMES) {
    for (const width of WIDTHS) {
      const page = await browser.newPage();
      await page.setBypassCSP(true); // the page itself allows no script but its own
      await page.setViewport({ width, height: 900 });
      await page.emulateMediaFeatures([{ name: 'prefers-color-scheme', value: scheme }]);
      const found = [];
      page.on('pageerror', (error) => found.push(String(error)));
      await page.goto(`file://${path.resolve(file)}`);
      found.push(...(await page.evaluate(tooWide)).slice(0, 5));
      await page.evaluate(axe.source);
      const report = await page.evaluate(() => window.axe.run(document));
      for (const v of report.violations) {
        const places = v.nodes.slice(0, 3).map((node) => node.target.join(' '));
        found.push(`${v.id} (${v.impact}) at ${v.nodes.length}: ${places.join(' | ')}`);
      }
      wrong += found.length;
      console.log(`${name} ${scheme} ${width}: ${report.passes.length} rules hold, ${found.length} findings`);
      found.forEach((line) => console.log(`  ${line}`));
      const height = await page.evaluate(() => document.documentElement.scrollHeight);
      for (let part = 0; part * PART < height; part++) {
        await page.screenshot({
          path: path.join(out, `${name}-${scheme}-${width}-${part}.png`),
          clip: { x: 0, y: part * PART, width, height: Math.min(PART, height - part * PART) },
          captureBeyondViewport: true,
        });
      }
      if (scheme === 'light' && width === WIDTHS[0]) {
        await page.pdf({ path: path.join(out, `${name}.pdf`), format: 'A4' });
      }
      await page.close();
    }
  }
}
await browser.close();
process.exit(wrong ? 1 : 0);
